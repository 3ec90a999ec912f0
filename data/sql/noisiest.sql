-- Identities of three samples or more by the share of their samples found to be noise
SELECT
    identity,
    count(*) AS samples,
    count(*) FILTER (WHERE verdict = 'keep') AS kept,
    count(*) FILTER (WHERE verdict = 'drop') AS dropped,
    count(*) FILTER (WHERE verdict = 'relabel') AS relabel,
    count(*) FILTER (WHERE verdict = 'review') AS review,
    round(100.0 * count(*) FILTER (WHERE verdict IN ('drop', 'relabel')) / count(*), 2) AS noise_percent
FROM manifest
WHERE status = 'ok'
GROUP BY identity
HAVING count(*) >= 3
ORDER BY noise_percent DESC, samples DESC, identity
LIMIT 100
