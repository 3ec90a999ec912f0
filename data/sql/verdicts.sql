-- Verdicts by who decided, with the angles and noise probabilities behind them
SELECT
    round,
    decided_by,
    verdict,
    count(*) AS items,
    count(DISTINCT identity) AS identities,
    min(angle_deg) AS min_angle_deg,
    approx_quantile(angle_deg, 0.5) AS median_angle_deg,
    max(angle_deg) AS max_angle_deg,
    avg(noise_probability) AS mean_noise_probability
FROM manifest
GROUP BY ALL
ORDER BY round NULLS LAST, decided_by, verdict
