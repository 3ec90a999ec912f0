-- Items by status, verdict and reason, with their share of the crawl
SELECT status, verdict, reason, count(*) AS items, count(*) FILTER (WHERE is_gone) AS no_longer_in_crawl, round(100.0 * count(*) / sum(count(*)) OVER (), 2) AS share_percent
FROM manifest
GROUP BY ALL
ORDER BY items DESC, status, verdict, reason
