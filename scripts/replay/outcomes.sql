-- What `outcomes.py` asks of the tables; every statement runs with DATABASE_SCHEMA as its search path.

-- name: clock
SELECT clock_timestamp();

-- name: has_outcomes
SELECT to_regclass('outcomes') IS NOT NULL;

-- name: create_replayed
-- The entries of this run. `ms` is the time in an entry's id.
CREATE TEMP TABLE replayed (entry_id text PRIMARY KEY, ms bigint NOT NULL);

-- name: analyze_replayed
ANALYZE replayed;

-- name: found
-- Which of some entries have an outcome. $1 stream, $2 entry ids text[]
SELECT DISTINCT entry_id FROM outcomes WHERE stream = $1 AND entry_id = ANY ($2::text[]);

-- name: missing
-- Entries of this run without an outcome, some of them where there are many. $1 stream
SELECT entry_id FROM replayed r
WHERE NOT EXISTS (SELECT FROM outcomes o WHERE o.stream = $1 AND o.entry_id = r.entry_id)
LIMIT 1000;

-- name: summary
-- The outcomes of this run's entries. Percentiles are NULL where nothing was recorded since $2.
-- $1 stream, $2 when the publishing began timestamptz
WITH ours AS (
    SELECT o.outcome, o.recorded_at, o.recorded_at >= $2 AS is_new,
           extract(epoch FROM o.recorded_at) * 1000 - r.ms AS latency_ms
    FROM replayed r JOIN outcomes o USING (entry_id) WHERE o.stream = $1
)
SELECT count(*) FILTER (WHERE outcome = 'accepted') AS accepted,
       count(*) FILTER (WHERE outcome = 'duplicate') AS duplicates,
       count(*) FILTER (WHERE outcome = 'rejected') AS rejected,
       count(*) FILTER (WHERE is_new) AS recorded_now,
       extract(epoch FROM max(recorded_at) FILTER (WHERE is_new) - $2)::float8 AS seconds,
       extract(epoch FROM clock_timestamp() - max(recorded_at))::float8 AS quiet_s,
       percentile_disc(ARRAY[0.5, 0.95, 0.99, 1]) WITHIN GROUP (ORDER BY latency_ms)
           FILTER (WHERE is_new)::float8[] AS latencies_ms
FROM ours;

-- name: accepted_elsewhere
-- Accepted orders that are not of this run. $1 stream, $2 $3 the span of time to look at
SELECT account, symbol, side, type, quantity, price, stop_price, time_in_force, expire_at, extra,
       split_part(entry_id, '-', 1)::bigint AS ms
FROM orders o
WHERE entry_at BETWEEN $2 AND $3
  AND NOT (stream = $1 AND EXISTS (SELECT FROM replayed r WHERE r.entry_id = o.entry_id));
