-- What every cut from 60 to 90 degrees would keep: samples with angle_deg <= cut, and identities left with one or more
WITH judged AS (
    SELECT identity, CAST(greatest(ceil(angle_deg), 60) AS INTEGER) AS degree, count(*) AS samples
    FROM manifest
    WHERE status = 'ok' AND angle_deg IS NOT NULL
    GROUP BY ALL
),
added AS (
    SELECT degree, sum(samples) AS samples FROM judged GROUP BY degree
),
found AS (
    SELECT degree, count(*) AS identities FROM (SELECT identity, min(degree) AS degree FROM judged GROUP BY identity) GROUP BY degree
),
total AS (
    SELECT coalesce(sum(samples), 0) AS samples FROM added
)
SELECT
    max_angle_deg,
    CAST(sum(coalesce(added.samples, 0)) OVER so_far AS BIGINT) AS kept,
    CAST(total.samples AS BIGINT) - kept AS dropped,
    round(100.0 * kept / total.samples, 2) AS kept_percent,
    CAST(sum(coalesce(found.identities, 0)) OVER so_far AS BIGINT) AS identities
FROM (SELECT unnest(range(60, 91)) AS max_angle_deg) cuts
CROSS JOIN total
LEFT JOIN added ON added.degree = max_angle_deg
LEFT JOIN found ON found.degree = max_angle_deg
WINDOW so_far AS (ORDER BY max_angle_deg ROWS UNBOUNDED PRECEDING)
ORDER BY max_angle_deg
