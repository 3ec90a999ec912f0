-- Samples nearest to the cut, on either side: look at these first. The cut lies midway from the largest kept angle to the next one removed
WITH kept AS (
    SELECT max(angle_deg) AS kept_deg FROM manifest WHERE verdict = 'keep' AND starts_with(decided_by, 'rule:')
),
cut AS (
    SELECT any_value(kept_deg) AS last_kept_deg, coalesce((last_kept_deg + min(angle_deg)) / 2, last_kept_deg) AS cut_deg
    FROM kept
    LEFT JOIN manifest ON verdict IN ('drop', 'relabel') AND angle_deg > kept_deg
)
SELECT
    sample_id,
    identity,
    verdict,
    reason,
    angle_deg,
    angle_deg - cut_deg AS beyond_cut_deg,
    noise_probability,
    other_identity,
    other_angle_deg,
    decided_by,
    source_uri
FROM manifest, cut
WHERE status = 'ok' AND verdict <> 'review' AND angle_deg IS NOT NULL AND cut_deg IS NOT NULL
ORDER BY abs(angle_deg - cut_deg), source_uri
LIMIT 100
