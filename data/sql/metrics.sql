-- Evaluation side by side: the backbone of the first round and that of the last
WITH ends AS (
    SELECT min(backbone) AS first_backbone, max(backbone) AS last_backbone FROM metrics
)
SELECT
    dataset,
    metric,
    first_backbone,
    max(value) FILTER (WHERE backbone = first_backbone) AS first_value,
    last_backbone,
    max(value) FILTER (WHERE backbone = last_backbone) AS last_value,
    last_value - first_value AS change,
    max(pairs) AS pairs
FROM metrics, ends
GROUP BY dataset, metric, first_backbone, last_backbone
ORDER BY dataset, metric
