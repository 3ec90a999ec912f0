-- Who is dropped more often: share of the samples removed by quality, size, sharpness, brightness, and how far the face is turned
WITH bounds AS (
    SELECT
        coalesce(approx_quantile(quality, [0.2, 0.4, 0.6, 0.8]), []) AS quality_bounds,
        coalesce(approx_quantile(sharpness, [0.2, 0.4, 0.6, 0.8]), []) AS sharpness_bounds,
        coalesce(approx_quantile(brightness, [0.2, 0.4, 0.6, 0.8]), []) AS brightness_bounds
    FROM manifest WHERE status = 'ok'
),
grouped AS (
    SELECT
        verdict,
        unnest([
            {kind: 'quality', value: 'fifth ' || (1 + len(list_filter(quality_bounds, lambda bound: quality > bound))) || ' of 5'},
            {kind: 'sharpness', value: 'fifth ' || (1 + len(list_filter(sharpness_bounds, lambda bound: sharpness > bound))) || ' of 5'},
            {kind: 'brightness', value: 'fifth ' || (1 + len(list_filter(brightness_bounds, lambda bound: brightness > bound))) || ' of 5'},
            {kind: 'yaw', value: CASE WHEN abs(yaw_deg) < 15 THEN '0 to 14 degrees' WHEN abs(yaw_deg) < 30 THEN '15 to 29 degrees'
                WHEN abs(yaw_deg) < 45 THEN '30 to 44 degrees' WHEN yaw_deg IS NOT NULL THEN '45 degrees and more' END},
            {kind: 'size', value: CASE WHEN side < 64 THEN 'below 64 px' WHEN side < 128 THEN '64 to 127 px'
                WHEN side < 256 THEN '128 to 255 px' ELSE '256 px and more' END}
        ], recursive := true)
    FROM (SELECT *, coalesce(least(face_width_px, face_height_px), least(width_px, height_px)) AS side FROM manifest WHERE status = 'ok'), bounds
)
SELECT
    kind,
    value,
    count(*) AS samples,
    count(*) FILTER (WHERE verdict = 'keep') AS kept,
    round(100.0 * count(*) FILTER (WHERE verdict IN ('drop', 'relabel')) / count(*), 2) AS removed_percent
FROM grouped
WHERE value IS NOT NULL
GROUP BY kind, value
ORDER BY kind, value
