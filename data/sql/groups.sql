-- Who is dropped more often: share of the samples removed, by fifths of quality (norm of the feature) and by size of the picture
WITH fifths AS (
    SELECT coalesce(approx_quantile(quality, [0.2, 0.4, 0.6, 0.8]), []) AS bounds FROM manifest WHERE status = 'ok'
),
samples AS (
    SELECT
        verdict,
        1 + len(list_filter(bounds, lambda bound: quality > bound)) AS quality_fifth,
        CASE WHEN least(width_px, height_px) < 64 THEN 'below 64 px' WHEN least(width_px, height_px) < 128 THEN '64 to 127 px'
            WHEN least(width_px, height_px) < 256 THEN '128 to 255 px' ELSE '256 px and more' END AS size_class
    FROM manifest, fifths
    WHERE status = 'ok'
),
grouped AS (
    SELECT 'quality' AS kind, 'fifth ' || quality_fifth || ' of 5' AS value, verdict FROM samples
    UNION ALL
    SELECT 'size' AS kind, size_class AS value, verdict FROM samples
)
SELECT
    kind,
    value,
    count(*) AS samples,
    count(*) FILTER (WHERE verdict = 'keep') AS kept,
    round(100.0 * count(*) FILTER (WHERE verdict IN ('drop', 'relabel')) / count(*), 2) AS removed_percent
FROM grouped
GROUP BY kind, value
ORDER BY kind, value
