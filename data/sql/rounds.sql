-- What changed between the first round and the last: verdict before, verdict after
WITH ends AS (
    SELECT min(round) AS first_round, max(round) AS last_round FROM noise
)
SELECT
    a.verdict AS first_verdict,
    b.verdict AS last_verdict,
    b.reason AS last_reason,
    count(*) AS samples,
    round(avg(a.noise_probability), 3) AS first_noise_probability,
    round(avg(b.noise_probability), 3) AS last_noise_probability
FROM ends, noise a
JOIN noise b ON b.source_uri = a.source_uri
WHERE a.round = first_round AND b.round = last_round
GROUP BY a.verdict, b.verdict, b.reason
ORDER BY samples DESC, first_verdict, last_verdict, last_reason
