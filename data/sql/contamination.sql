-- Identities and images of the crawl that stand in a protected evaluation set too, the nearest first
SELECT kind, identity, sample_id, source_uri, protected_set, protected_image, round(angle_deg, 1) AS angle_deg
FROM contamination
ORDER BY kind DESC, angle_deg, identity, source_uri
LIMIT 1000
