-- Who is dropped more often: share of the samples removed by quality, size, sharpness, brightness, and how far the face is turned
WITH bounds AS (
    SELECT
        approx_quantile(quality, [0.2, 0.4, 0.6, 0.8]) AS qualities,
        approx_quantile(sharpness, [0.2, 0.4, 0.6, 0.8]) AS sharpnesses,
        approx_quantile(brightness, [0.2, 0.4, 0.6, 0.8]) AS brightnesses
    FROM manifest WHERE status = 'ok'
),
-- A number for each property of each sample, and few rows for all: samples are counted before numbers become words
counted AS (
    SELECT
        1 + (quality > qualities[1])::INT + (quality > qualities[2])::INT + (quality > qualities[3])::INT + (quality > qualities[4])::INT AS quality,
        1 + (sharpness > sharpnesses[1])::INT + (sharpness > sharpnesses[2])::INT + (sharpness > sharpnesses[3])::INT + (sharpness > sharpnesses[4])::INT AS sharpness,
        1 + (brightness > brightnesses[1])::INT + (brightness > brightnesses[2])::INT + (brightness > brightnesses[3])::INT + (brightness > brightnesses[4])::INT AS brightness,
        CASE WHEN yaw_deg IS NOT NULL THEN least(floor(abs(yaw_deg) / 15), 3)::INT END AS yaw,
        (side >= 64)::INT + (side >= 128)::INT + (side >= 256)::INT AS size,
        count(*) AS samples,
        count(*) FILTER (WHERE verdict = 'keep') AS kept,
        count(*) FILTER (WHERE verdict IN ('drop', 'relabel')) AS removed
    FROM (SELECT *, coalesce(least(face_width_px, face_height_px), least(width_px, height_px)) AS side FROM manifest WHERE status = 'ok'), bounds
    GROUP BY ALL
),
grouped AS (
    SELECT
        unnest([
            {kind: 'quality', value: 'fifth ' || quality || ' of 5'},
            {kind: 'sharpness', value: 'fifth ' || sharpness || ' of 5'},
            {kind: 'brightness', value: 'fifth ' || brightness || ' of 5'},
            {kind: 'yaw', value: ['0 to 14 degrees', '15 to 29 degrees', '30 to 44 degrees', '45 degrees and more'][yaw + 1]},
            {kind: 'size', value: ['below 64 px', '64 to 127 px', '128 to 255 px', '256 px and more'][size + 1]}
        ], recursive := true),
        samples, kept, removed
    FROM counted
)
SELECT
    kind,
    value,
    CAST(sum(samples) AS BIGINT) AS samples,
    CAST(sum(kept) AS BIGINT) AS kept,
    round(100.0 * sum(removed) / sum(samples), 2) AS removed_percent
FROM grouped
WHERE value IS NOT NULL
GROUP BY kind, value
ORDER BY kind, value
