-- Samples nearest to the cut, on either side: look at these first. By noise probability if that is the rule, else by angle; the cut lies midway
WITH judged AS (
    SELECT *, CASE WHEN decided_by = 'rule:calibrated' THEN noise_probability ELSE angle_deg END AS judged_by
    FROM manifest
    WHERE status = 'ok' AND starts_with(decided_by, 'rule:')
),
kept AS (
    SELECT max(judged_by) AS last_kept FROM judged WHERE verdict = 'keep'
),
cut AS (
    SELECT any_value(last_kept) AS largest, coalesce((largest + min(judged_by)) / 2, largest) AS cut_at
    FROM kept
    LEFT JOIN judged ON verdict IN ('drop', 'relabel') AND judged_by > last_kept
)
SELECT
    sample_id,
    identity,
    verdict,
    reason,
    judged_by - cut_at AS beyond_cut,
    angle_deg,
    consensus_angle_deg,
    noise_probability,
    other_identity,
    other_angle_deg,
    decided_by,
    source_uri
FROM judged, cut
WHERE verdict <> 'review' AND reason NOT IN ('near_duplicate', 'same_bytes_elsewhere', 'same_photo_elsewhere') AND judged_by IS NOT NULL AND cut_at IS NOT NULL
ORDER BY abs(judged_by - cut_at), source_uri
LIMIT 100
