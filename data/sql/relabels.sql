-- Samples that are somebody else's: proposed for that identity, with both angles
SELECT sample_id, identity, consensus_angle_deg, other_identity, other_angle_deg, noise_probability, source_uri
FROM manifest
WHERE verdict = 'relabel'
ORDER BY other_angle_deg, source_uri
LIMIT 100
