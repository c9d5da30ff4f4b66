-- name: record_outcomes
-- Record a batch; see the function in migrations/0002_record_outcomes.sql.
-- $1 stream text, $2 window interval, $3 envelope fields, sorted, $4 reading, $5 orders, $6 rejections, $7 whether
-- the points are owed, $8 an `as_of` known before the entries were read, $9 batches in hand whose points are written
SELECT asked, accepted, others, rejected, as_of, in_hand FROM record_outcomes($1, $2, $3, $4, $5, $6, $7, $8, $9);

-- name: as_of
-- The clock by which later reading is later.
SELECT clock_timestamp();

-- name: owe_points
-- Note entries whose point InfluxDB did not take.  $1 stream, $2 entry ids
INSERT INTO point_backlog (stream, entry_id) SELECT $1, unnest($2::text[]) ON CONFLICT DO NOTHING;

-- name: settle_in_hand
-- Forget batches whose points are written, and owe the points of those that a worker has left.
-- $1 batches in hand whose points are written, $2 interval after which others are left
WITH written AS (
    DELETE FROM points_in_hand WHERE id = ANY ($1::bigint[])
), left_behind AS (
    DELETE FROM points_in_hand WHERE id = ANY (ARRAY(
        SELECT id FROM points_in_hand
        WHERE noted_at < clock_timestamp() - $2::interval AND id <> ALL ($1::bigint[])
        ORDER BY id LIMIT 100 FOR UPDATE SKIP LOCKED))
    RETURNING stream, entry_ids
)
INSERT INTO point_backlog (stream, entry_id)
SELECT DISTINCT l.stream, e.entry_id FROM left_behind l CROSS JOIN LATERAL unnest(l.entry_ids) e (entry_id)
ON CONFLICT DO NOTHING;

-- name: row_by_row
-- For the rest of a transaction. The statements below are planned while tables are small, and kept.
SET LOCAL enable_seqscan = off;

-- name: owed_points
-- Some of the points owed, the oldest first, with all that a point tells. Skips what another worker drains just now,
-- and those whose outcome somebody has deleted, which would keep the others from their turn.
-- OFFSET 0 keeps each look at a table a look by its index, row by row.
-- $1 at most
WITH owed AS (
    SELECT stream, entry_id FROM point_backlog b
    WHERE refusal IS NULL AND coalesce(
        (SELECT 1 FROM orders WHERE stream = b.stream AND entry_id = b.entry_id LIMIT 1),
        (SELECT 1 FROM duplicates WHERE stream = b.stream AND entry_id = b.entry_id),
        (SELECT 1 FROM rejections WHERE stream = b.stream AND entry_id = b.entry_id)) IS NOT NULL
    ORDER BY noted_at LIMIT $1 FOR UPDATE SKIP LOCKED
)
SELECT b.stream, b.entry_id, 'accepted' AS outcome, o.order_id, o.symbol, o.side, o.type,
       o.quantity::text, o.price::text, o.stop_price::text, o.generation,
       NULL::text AS original_entry_id, NULL::text AS code
FROM owed b
CROSS JOIN LATERAL (
    SELECT * FROM orders WHERE stream = b.stream AND entry_id = b.entry_id OFFSET 0) o
UNION ALL
SELECT b.stream, b.entry_id, 'duplicate', d.order_id, o.symbol, o.side, o.type,
       o.quantity::text, o.price::text, o.stop_price::text, o.generation, o.entry_id, NULL
FROM owed b
CROSS JOIN LATERAL (
    SELECT * FROM duplicates WHERE stream = b.stream AND entry_id = b.entry_id OFFSET 0) d
CROSS JOIN LATERAL (
    SELECT * FROM orders WHERE content_hash = d.content_hash AND generation = d.generation OFFSET 0) o
UNION ALL
SELECT b.stream, b.entry_id, 'rejected', r.order_id, NULL, NULL, NULL,
       NULL, NULL, NULL, NULL, NULL, r.code
FROM owed b
CROSS JOIN LATERAL (
    SELECT * FROM rejections WHERE stream = b.stream AND entry_id = b.entry_id OFFSET 0) r;

-- name: points_paid
-- Forget points that InfluxDB has now.  $1 streams, $2 entry ids
DELETE FROM point_backlog WHERE ctid = ANY (ARRAY(
    SELECT (SELECT b.ctid FROM point_backlog b WHERE b.stream = paid.stream AND b.entry_id = paid.entry_id)
    FROM unnest($1::text[], $2::text[]) AS paid (stream, entry_id)));

-- name: point_refused
-- Park a point that InfluxDB will never take.  $1 stream, $2 entry id, $3 what InfluxDB said
UPDATE point_backlog SET refusal = $3 WHERE stream = $1 AND entry_id = $2;
