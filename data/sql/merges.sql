-- Two names for one person (merge), perhaps (review), and one name for two people (split), as every round proposes them
SELECT round, kind, identity, other_identity, samples, other_samples, share_near, other_share_near, center_angle_deg
FROM proposals
ORDER BY round DESC, kind, least(share_near, other_share_near) DESC, other_samples DESC, identity, other_identity
