-- What every cut from 60 to 90 degrees would keep: samples with angle_deg <= cut, and identities left with one or more
WITH cuts AS (
    SELECT unnest(range(60, 91)) AS max_angle_deg
),
judged AS (
    SELECT identity, ceil(angle_deg) AS degree, count(*) AS samples
    FROM manifest
    WHERE status = 'ok' AND angle_deg IS NOT NULL AND NOT isnan(angle_deg)
    GROUP BY ALL
),
total AS (
    SELECT sum(samples) AS samples FROM judged
)
SELECT
    max_angle_deg,
    CAST(coalesce(sum(judged.samples), 0) AS BIGINT) AS kept,
    CAST(coalesce(any_value(total.samples), 0) AS BIGINT) - kept AS dropped,
    round(100.0 * kept / any_value(total.samples), 2) AS kept_percent,
    count(DISTINCT identity) AS identities
FROM cuts
CROSS JOIN total
LEFT JOIN judged ON judged.degree <= max_angle_deg
GROUP BY max_angle_deg
ORDER BY max_angle_deg
