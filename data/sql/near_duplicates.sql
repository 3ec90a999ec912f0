-- The same photograph again, inside an identity: how much of what was clean is one picture
SELECT
    identity,
    near_duplicate_of AS kept_sample_id,
    count(*) AS copies,
    any_value(verdict) AS verdict,
    min(source_uri) AS first_source_uri
FROM manifest
WHERE near_duplicate_of IS NOT NULL
GROUP BY identity, near_duplicate_of
ORDER BY copies DESC, identity, kept_sample_id
LIMIT 100
