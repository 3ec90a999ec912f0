-- Noise by where the items came from: host of a URL, else the first folder or tar of the path
SELECT
    split_part(source_uri, '/', CASE WHEN contains(source_uri,'://') THEN 3 ELSE 1 END) AS source,
    count(*) AS items,
    count(*) FILTER (WHERE status = 'ok') AS samples,
    count(*) FILTER (WHERE verdict = 'keep') AS kept,
    round(100.0 * count(*) FILTER (WHERE status = 'ok' AND verdict IN ('drop', 'relabel')) / greatest(samples, 1), 2) AS noise_percent
FROM manifest
GROUP BY source
ORDER BY noise_percent DESC, samples DESC, source
LIMIT 100
