-- Pairs of identities that may be one person: each one's samples lie near the other's dominant sub-center (75 degrees, ArcFace TPAMI table 3)
WITH sizes AS (
    SELECT identity, count(*) AS samples FROM manifest WHERE status = 'ok' GROUP BY identity
),
near AS (
    SELECT
        identity,
        other_identity,
        count(*) AS near,
        count(*) FILTER (WHERE verdict = 'relabel') AS proposed,
        median(other_angle_deg) AS median_angle_deg
    FROM manifest
    WHERE status = 'ok' AND other_identity IS NOT NULL AND (other_angle_deg <= 75 OR verdict = 'relabel')
    GROUP BY identity, other_identity
),
pairs AS (
    SELECT DISTINCT least(identity, other_identity) AS identity_a, greatest(identity, other_identity) AS identity_b FROM near
)
SELECT
    identity_a,
    identity_b,
    a.samples AS samples_a,
    b.samples AS samples_b,
    coalesce(ab.near, 0) AS a_near_b,
    coalesce(ba.near, 0) AS b_near_a,
    coalesce(ab.proposed, 0) AS relabel_a_to_b,
    coalesce(ba.proposed, 0) AS relabel_b_to_a,
    ab.median_angle_deg AS median_a_to_b_deg,
    ba.median_angle_deg AS median_b_to_a_deg,
    round(100.0 * least(coalesce(ab.near, 0) / a.samples, coalesce(ba.near, 0) / b.samples), 2) AS mutual_percent
FROM pairs
JOIN sizes a ON a.identity = identity_a
JOIN sizes b ON b.identity = identity_b
LEFT JOIN near ab ON ab.identity = identity_a AND ab.other_identity = identity_b
LEFT JOIN near ba ON ba.identity = identity_b AND ba.other_identity = identity_a
ORDER BY mutual_percent DESC, relabel_a_to_b + relabel_b_to_a DESC, identity_a, identity_b
LIMIT 100
