-- Sets of equal bytes: those that stand under several identities first
SELECT
    duplicate_set,
    count(*) AS items,
    count(DISTINCT identity) AS identities,
    count(*) FILTER (WHERE clean_identity IS NOT NULL) AS exported,
    list(DISTINCT identity ORDER BY identity) AS names,
    min(source_uri) AS first_source_uri
FROM manifest
WHERE duplicate_set IS NOT NULL
GROUP BY duplicate_set
ORDER BY identities DESC, items DESC, duplicate_set
LIMIT 100
