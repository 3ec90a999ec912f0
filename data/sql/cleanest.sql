-- Identities of three samples or more by how few of their samples were found to be noise, the largest first
WITH cleanest AS (
    SELECT
        identity,
        count(*) AS samples,
        count(*) FILTER (WHERE verdict = 'keep') AS kept,
        round(100.0 * count(*) FILTER (WHERE verdict IN ('drop', 'relabel')) / count(*), 2) AS noise_percent
    FROM manifest
    WHERE status = 'ok'
    GROUP BY identity
    HAVING count(*) >= 3
    ORDER BY noise_percent, samples DESC, identity
    LIMIT 100
)
SELECT identity, samples, kept, noise_percent, round(median(consensus_angle_deg), 1) AS median_angle_deg
FROM cleanest JOIN manifest USING (identity)
WHERE status = 'ok'
GROUP BY ALL
ORDER BY noise_percent, samples DESC, identity
