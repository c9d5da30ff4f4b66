-- name: latest_duplicates
-- The latest duplicates and what they repeat, by the entries' own times. Each stream's are found from the end
-- of its primary key, whose text sorts as the ids do while these are of one length (until the year 2286).
-- $1 streams, $2 at most
SELECT d.stream, d.entry_id, d.order_id, o.symbol, o.side, o.quantity::text, o.price::text,
       o.stream AS original_stream, o.entry_id AS original_entry_id, o.order_id AS original_order_id,
       (extract(epoch FROM d.entry_at - o.entry_at) * 1000)::bigint AS apart_ms
FROM unnest($1::text[]) AS s (stream)
CROSS JOIN LATERAL (
    SELECT * FROM duplicates WHERE stream = s.stream ORDER BY entry_id DESC LIMIT $2
) d
JOIN orders o USING (content_hash, generation)
ORDER BY d.entry_at DESC, d.entry_id DESC LIMIT $2;

-- name: latest_rejections
-- The latest rejected entries, found as above, with so much of their fields as fits a page.
-- $1 streams, $2 at most, $3 names and values of each at most, $4 bytes of each of these at most
SELECT r.stream, r.entry_id, r.code, r.reason, r.order_id, cardinality(r.fields) AS count,
       ARRAY(SELECT substring(word FOR $4) FROM unnest(r.fields[:$3]) AS word) AS words
FROM unnest($1::text[]) AS s (stream)
CROSS JOIN LATERAL (
    SELECT * FROM rejections WHERE stream = s.stream ORDER BY entry_id DESC LIMIT $2
) r
ORDER BY r.entry_at DESC, r.entry_id DESC LIMIT $2;
