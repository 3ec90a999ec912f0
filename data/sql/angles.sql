-- Angles to the dominant sub-center, in steps of five degrees, by verdict
SELECT
    CAST(least(floor(angle_deg / 5) * 5, 175) AS INTEGER) AS from_deg,
    from_deg + 5 AS to_deg,
    count(*) AS samples,
    count(*) FILTER (WHERE verdict = 'keep') AS kept,
    count(*) FILTER (WHERE verdict = 'drop') AS dropped,
    count(*) FILTER (WHERE verdict = 'relabel') AS relabel,
    count(*) FILTER (WHERE verdict = 'review') AS review,
    count(*) FILTER (WHERE nearest_subcenter <> dominant_subcenter) AS nondominant
FROM manifest
WHERE angle_deg IS NOT NULL
GROUP BY from_deg
ORDER BY from_deg
