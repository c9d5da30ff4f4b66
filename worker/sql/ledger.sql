-- name: record_outcomes
-- Record a batch; see the function in migrations/0002_first_outcome.sql.
-- $1 stream text, $2 window interval, $3 orders, $4 rejections, $5 whether the points are owed, $6 an `as_of`
-- known before the entries were read
SELECT accepted, others, as_of FROM record_outcomes($1, $2, $3, $4, $5, $6);

-- name: as_of
-- The clock by which later reading is later.
SELECT clock_timestamp();

-- name: owe_points
-- Note entries whose point InfluxDB did not take.  $1 stream, $2 entry ids
INSERT INTO point_backlog (stream, entry_id) SELECT $1, unnest($2::text[]) ON CONFLICT DO NOTHING;

-- name: owed_points
-- Some of the points owed, with all that a point tells. Skips what another worker drains just now.
-- $1 at most
WITH owed AS (
    SELECT stream, entry_id FROM point_backlog WHERE refusal IS NULL
    ORDER BY stream, entry_id LIMIT $1 FOR UPDATE SKIP LOCKED
)
SELECT stream, b.entry_id, 'accepted' AS outcome, o.order_id, o.symbol, o.side, o.type,
       o.quantity::text, o.price::text, o.stop_price::text, o.generation,
       NULL::text AS original_entry_id, NULL::text AS code
FROM owed b JOIN orders o USING (stream, entry_id)
UNION ALL
SELECT b.stream, b.entry_id, 'duplicate', d.order_id, o.symbol, o.side, o.type,
       o.quantity::text, o.price::text, o.stop_price::text, o.generation, o.entry_id, NULL
FROM owed b
JOIN duplicates d ON d.stream = b.stream AND d.entry_id = b.entry_id
JOIN orders o ON o.content_hash = d.content_hash AND o.generation = d.generation
UNION ALL
SELECT stream, b.entry_id, 'rejected', r.order_id, NULL, NULL, NULL,
       NULL, NULL, NULL, NULL, NULL, r.code
FROM owed b JOIN rejections r USING (stream, entry_id);

-- name: points_paid
-- Forget points that InfluxDB has now.  $1 streams, $2 entry ids
DELETE FROM point_backlog b USING unnest($1::text[], $2::text[]) AS paid (stream, entry_id)
WHERE b.stream = paid.stream AND b.entry_id = paid.entry_id;

-- name: point_refused
-- Park a point that InfluxDB will never take.  $1 stream, $2 entry id, $3 what InfluxDB said
UPDATE point_backlog SET refusal = $3 WHERE stream = $1 AND entry_id = $2;
