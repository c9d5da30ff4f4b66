-- name: note_replays
-- Put on record which dead letter entries come from.
-- $1 stream, $2 the new entries' ids, $3 the rejected entry's id, $4 names of the fields that were changed
INSERT INTO replays (stream, entry_id, origin_id, changed)
SELECT $1, unnest($2::text[]), $3, $4::text[] ON CONFLICT DO NOTHING;

-- name: outcomes_where
-- The newest outcomes of a stream's entry, of an order id or of a content, and how many there are.
-- Unlike the view, with duplicates whose original is gone.
-- $1 streams, $2 entry id, $3 order id, $4 content hash (null: any), $5 at most
SELECT count(*) OVER () AS total, e.* FROM (
    SELECT stream, entry_id, entry_at, 'accepted' AS outcome, order_id, content_hash, generation,
           NULL::text AS code, NULL::text AS reason, recorded_at FROM orders
    UNION ALL
    SELECT stream, entry_id, entry_at, 'duplicate', order_id, content_hash, generation,
           NULL, NULL, recorded_at FROM duplicates
    UNION ALL
    SELECT stream, entry_id, entry_at, 'rejected', order_id, NULL, NULL, code, reason, recorded_at FROM rejections
) e
WHERE ($1::text[] IS NULL OR stream = ANY ($1)) AND ($2::text IS NULL OR entry_id = $2)
    AND ($3::text IS NULL OR order_id = $3) AND ($4::bytea IS NULL OR content_hash = $4)
ORDER BY entry_at DESC, recorded_at DESC, entry_id DESC LIMIT $5;

-- name: order_of
-- An accepted order as it was sent, the decimals exact.  $1 content hash, $2 generation
SELECT stream, entry_id, entry_at, order_id, account, symbol, side, type, quantity::text, price::text,
       stop_price::text, time_in_force, expire_at, extra::text
FROM orders WHERE content_hash = $1 AND generation = $2;

-- name: point_owed
-- $1 stream, $2 entry id
SELECT noted_at, refusal FROM point_backlog WHERE stream = $1 AND entry_id = $2;

-- name: replays_about
-- What an entry comes from, or was sent again as.  $1 stream, $2 entry id
SELECT entry_id, origin_id, changed, replayed_at FROM replays
WHERE stream = $1 AND (entry_id = $2 OR origin_id = $2) ORDER BY replayed_at LIMIT 20;

-- name: audited_outcomes
-- Every outcome of a stream, in the order of its entries, and what its point's debt is. `settled`: recorded
-- long enough ago for its point to be written or owed. `before_it`: an order of the same content that was accepted
-- before it, though no window lies between them; looked for in the indexes that `original_of` has.
-- $1 stream, $2 from, $3 before (null: no bound), $4 how long a worker may hold an entry, $5 window
SELECT e.entry_id, e.outcome, e.content_hash, e.orphan, e.recorded_at < clock_timestamp() - $4::interval AS settled,
       b.entry_id IS NOT NULL AS owed, b.refusal IS NOT NULL AS refused, e.before_it
FROM (
    SELECT entry_id, entry_at, 'accepted' AS outcome, content_hash, false AS orphan, recorded_at,
        CASE WHEN generation > 0 THEN coalesce(
            (SELECT o.entry_id FROM orders o
            WHERE o.content_hash = n.content_hash AND o.generation = 0
                AND o.entry_at BETWEEN n.entry_at - $5::interval AND n.entry_at + $5::interval),
            (SELECT o.entry_id FROM orders o
            WHERE o.content_hash = n.content_hash AND o.generation > 0 AND o.generation < n.generation
                AND o.entry_at BETWEEN n.entry_at - $5::interval AND n.entry_at + $5::interval LIMIT 1)
        ) END AS before_it
    FROM orders n WHERE stream = $1
    UNION ALL
    SELECT entry_id, entry_at, 'duplicate', content_hash, NOT EXISTS (
        SELECT FROM orders o WHERE o.content_hash = d.content_hash AND o.generation = d.generation), recorded_at, NULL
    FROM duplicates d WHERE stream = $1
    UNION ALL
    SELECT entry_id, entry_at, 'rejected', NULL, false, recorded_at, NULL FROM rejections WHERE stream = $1
) e LEFT JOIN point_backlog b ON b.stream = $1 AND b.entry_id = e.entry_id
WHERE ($2::timestamptz IS NULL OR e.entry_at >= $2) AND ($3::timestamptz IS NULL OR e.entry_at < $3)
ORDER BY split_part(e.entry_id, '-', 1)::numeric, split_part(e.entry_id, '-', 2)::numeric, e.outcome;

-- name: without_outcome
-- Those of some entries that no table has.  $1 stream, $2 entry ids
SELECT i.entry_id FROM unnest($2::text[]) AS i (entry_id)
WHERE NOT EXISTS (SELECT FROM orders o WHERE o.stream = $1 AND o.entry_id = i.entry_id)
    AND NOT EXISTS (SELECT FROM duplicates d WHERE d.stream = $1 AND d.entry_id = i.entry_id)
    AND NOT EXISTS (SELECT FROM rejections r WHERE r.stream = $1 AND r.entry_id = i.entry_id);

-- name: originals_of
-- The accepted orders of some contents, oldest generation first.  $1 content hashes
SELECT content_hash, entry_id FROM orders WHERE content_hash = ANY ($1::bytea[]) ORDER BY generation;

-- name: other_outcomes_of
-- The contents of some entries that are no orders, null where they were rejected.  $1 stream, $2 entry ids
SELECT entry_id, content_hash FROM duplicates WHERE stream = $1 AND entry_id = ANY ($2::text[])
UNION ALL SELECT entry_id, NULL FROM rejections WHERE stream = $1 AND entry_id = ANY ($2::text[]);

-- name: recent_outcomes
-- How many outcomes of each kind were recorded lately, by stream.  $1 streams, $2 how lately
SELECT stream, outcome, count(*) FROM (
    SELECT stream, 'accepted' AS outcome, recorded_at FROM orders
    UNION ALL SELECT stream, 'duplicate', recorded_at FROM duplicates
    UNION ALL SELECT stream, 'rejected', recorded_at FROM rejections
) e WHERE stream = ANY ($1::text[]) AND recorded_at > statement_timestamp() - $2::interval GROUP BY 1, 2;

-- name: outcome_totals
-- How many outcomes of each kind are on record, by stream.  $1 streams
SELECT stream, outcome, count(*) FROM (
    SELECT stream, 'accepted' AS outcome FROM orders
    UNION ALL SELECT stream, 'duplicate' FROM duplicates
    UNION ALL SELECT stream, 'rejected' FROM rejections
) e WHERE stream = ANY ($1::text[]) GROUP BY 1, 2;

-- name: points_owed
-- Points that InfluxDB does not have, by stream: owed, the oldest of these since when, and refused.  $1 streams
SELECT stream, count(*) FILTER (WHERE refusal IS NULL) AS owed,
       min(noted_at) FILTER (WHERE refusal IS NULL) AS owed_since, count(refusal) AS parked
FROM point_backlog WHERE stream = ANY ($1::text[]) GROUP BY stream;
