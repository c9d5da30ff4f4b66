-- What a report measures, as aggregates over the temporary tables `replayed` (../outcomes.sql) and `measured`.

-- name: create_measured
-- The outcomes of this run's entries. Milliseconds: `entry_ms` of the entry's id and `recorded_ms` of
-- recorded_at since the publishing began, `latency_ms` from the one to the other, `distance_ms` from a
-- duplicate to its original, whichever came first. `is_new`: recorded since the publishing began.
CREATE TEMP TABLE measured (
    entry_id text, outcome text, code text, is_new boolean, entry_ms float8, recorded_ms float8,
    latency_ms float8, distance_ms bigint
);

-- name: fill_measured
-- $1 stream, $2 when the publishing began timestamptz
INSERT INTO measured
SELECT r.entry_id, o.outcome, o.code, o.recorded_at >= $2, r.ms - extract(epoch FROM $2) * 1000,
       extract(epoch FROM o.recorded_at - $2) * 1000,
       extract(epoch FROM o.recorded_at) * 1000 - r.ms,
       abs(r.ms - split_part(o.original_entry_id, '-', 1)::bigint)
FROM replayed r JOIN outcomes o USING (entry_id) WHERE o.stream = $1;

-- name: analyze_measured
ANALYZE measured;

-- name: rejections
SELECT code, count(*) FROM measured WHERE outcome = 'rejected' GROUP BY code ORDER BY 2 DESC, 1;

-- name: latency
-- $1 fractions float8[], the percentiles to give
SELECT count(*), avg(latency_ms) AS mean_ms,
       percentile_disc($1::float8[]) WITHIN GROUP (ORDER BY latency_ms) AS percentiles_ms
FROM measured WHERE is_new;

-- name: latency_buckets
-- How many lie below each bound and at or above the one before it: 0 is below the first. $1 bounds float8[]
SELECT width_bucket(latency_ms, $1::float8[]) AS place, count(*) FROM measured WHERE is_new GROUP BY 1;

-- name: distance_buckets
-- The same for duplicates' distances. $1 bounds float8[]
SELECT width_bucket(distance_ms::float8, $1::float8[]) AS place, count(*)
FROM measured WHERE distance_ms IS NOT NULL GROUP BY 1;

-- name: span
-- Milliseconds from the begin of the publishing to the last entry id and the last outcome; NULL for none.
-- $1 when the publishing began timestamptz
SELECT (SELECT max(ms) - extract(epoch FROM $1::timestamptz) * 1000 FROM replayed)::float8 AS entry_ms,
       (SELECT max(recorded_ms) FROM measured WHERE is_new) AS recorded_ms;

-- name: slices
-- The run in slices of time. What clocks that differ put outside is counted in the first or last one.
-- $1 milliseconds of a slice float8, $2 number of the last slice int, $3 fractions float8[],
-- $4 when the publishing began timestamptz
WITH published AS (
    SELECT least(greatest(floor((ms - extract(epoch FROM $4::timestamptz) * 1000) / $1), 0), $2)::int AS place,
           count(*) AS published
    FROM replayed GROUP BY 1
), recorded AS (
    SELECT least(greatest(floor(recorded_ms / $1), 0), $2)::int AS place, count(*) AS recorded
    FROM measured WHERE is_new GROUP BY 1
), latencies AS (
    SELECT least(greatest(floor(entry_ms / $1), 0), $2)::int AS place,
           percentile_disc($3::float8[]) WITHIN GROUP (ORDER BY latency_ms) AS percentiles_ms
    FROM measured WHERE is_new GROUP BY 1
)
SELECT place, coalesce(published, 0) AS published, coalesce(recorded, 0) AS recorded,
       (sum(coalesce(published, 0)) OVER before - sum(coalesce(recorded, 0)) OVER before)::bigint AS waiting,
       percentiles_ms
FROM generate_series(0, $2::int) AS place
LEFT JOIN published USING (place) LEFT JOIN recorded USING (place) LEFT JOIN latencies USING (place)
WINDOW before AS (ORDER BY place)
ORDER BY place;

-- name: slowest
-- Entries that took longest. $1 stream, $2 how many
SELECT m.entry_id, m.entry_ms AS at_ms, m.latency_ms, o.outcome, o.order_id, o.symbol, o.code,
       o.original_entry_id
FROM (SELECT * FROM measured WHERE is_new ORDER BY latency_ms DESC, entry_id LIMIT $2) m
JOIN outcomes o ON o.stream = $1 AND o.entry_id = m.entry_id AND o.outcome = m.outcome
ORDER BY m.latency_ms DESC, m.entry_id;

-- name: postgres_version
SELECT current_setting('server_version');
