-- The function that records a batch, and its parts. The first outcome of a delivery stands: an entry that was
-- trimmed from its stream while a stalled worker held it is recorded as rejected by whoever takes it over, and is
-- not recorded once more when the first worker wakes.

-- One order to record. Decimals travel as text, cast here, exact; instants, too, for asyncpg sends the first and
-- the last that Python has as -infinity and infinity. `known`: Redis says it is stored already. `fields`: names and
-- values in turn, as sent; null until they are asked for.
CREATE TYPE order_entry AS (
    entry_id text, entry_ms bigint, known boolean, content_hash bytea, order_id text, account text,
    symbol text, side text, type text, quantity text, price text, stop_price text,
    time_in_force text, expire_at text, extra text, fields bytea[]
);

CREATE TYPE rejected_entry AS (
    entry_id text, entry_ms bigint, code text, reason text, order_id text, symbol text, fields bytea[]
);

-- Milliseconds since 1970 as an instant; infinity beyond what InfluxDB can tell, for rejections only.
-- Not IMMUTABLE, for its operators are not: Postgres puts a function's body in the place of its call only
-- where the two agree, and a call costs more than all else of a row's way through a statement.
CREATE FUNCTION entry_instant(ms bigint) RETURNS timestamptz
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN ms <= 9223372036854
        THEN timestamptz 'epoch' + ms * interval '1 millisecond' ELSE 'infinity' END
$$;

-- The accepted order within whose window an entry lies: the latest before it, else the next after it. Each part
-- finds one row at most, by its index, however many generations there are.
CREATE FUNCTION original_of(p_content_hash bytea, p_at timestamptz, p_window interval)
RETURNS SETOF orders LANGUAGE sql STABLE ROWS 1 AS $$
    SELECT * FROM (
        SELECT * FROM orders
        WHERE content_hash = p_content_hash AND generation = 0
            AND entry_at BETWEEN p_at - p_window AND p_at + p_window
        UNION ALL (
            SELECT * FROM orders
            WHERE content_hash = p_content_hash AND generation > 0
                AND entry_at BETWEEN p_at - p_window AND p_at
            ORDER BY entry_at DESC LIMIT 1
        ) UNION ALL (
            SELECT * FROM orders
            WHERE content_hash = p_content_hash AND generation > 0
                AND entry_at > p_at AND entry_at <= p_at + p_window
            ORDER BY entry_at LIMIT 1
        )
    ) o
    ORDER BY entry_at <= p_at DESC, greatest(entry_at - p_at, p_at - entry_at) LIMIT 1
$$;

-- The outcome on record of this very entry, with this content; no row where there is none. OFFSET 0 keeps the
-- look at orders one by the entry, not by the content.
CREATE FUNCTION outcome_of(p_stream text, p_entry_id text, p_content_hash bytea)
RETURNS TABLE (outcome text, generation int, original_entry_id text) LANGUAGE sql STABLE ROWS 1 AS $$
    SELECT 'accepted', o.generation, NULL
    FROM (SELECT * FROM orders WHERE stream = p_stream AND entry_id = p_entry_id OFFSET 0) o
    WHERE o.content_hash = p_content_hash
    UNION ALL
    SELECT 'duplicate', d.generation, (SELECT o.entry_id FROM orders o
        WHERE o.content_hash = d.content_hash AND o.generation = d.generation)
    FROM duplicates d
    WHERE d.stream = p_stream AND d.entry_id = p_entry_id AND d.content_hash = p_content_hash
    LIMIT 1
$$;

-- What the tables say of an entry after a batch. `redelivered`: it was on record before.
CREATE TYPE recorded_entry AS (
    entry_id text, outcome text, redelivered boolean, generation int, original_entry_id text
);

CREATE TYPE recorded_rejection AS (
    entry_id text, redelivered boolean, code text, reason text, order_id text, symbol text
);

-- Record one order whose content's window has passed as the next generation, or as a repeat of what
-- another worker made it meanwhile. Gives nothing where a duplicate of other content has its entry's id.
--
-- The generation is chosen before the original is looked for: one that another worker adds behind the look has
-- that number, and the constraint says so. Chosen behind it, both would be accepted.
CREATE FUNCTION record_next_generation(
    p_stream text, p_window interval, p_now timestamptz, p_order record
) RETURNS recorded_entry[] LANGUAGE plpgsql AS $$
DECLARE
    v_generation int;
    v_original orders;
    v_recorded recorded_entry;
BEGIN
    LOOP
        v_generation := coalesce(
            (SELECT o.generation + 1 FROM orders o WHERE o.content_hash = p_order.content_hash
            ORDER BY o.generation DESC LIMIT 1), 0);
        SELECT * INTO v_original
        FROM original_of(p_order.content_hash, p_order.entry_at, p_window);
        EXIT WHEN FOUND;
        INSERT INTO orders (content_hash, generation, stream, entry_id, entry_at, order_id, account,
            symbol, side, type, quantity, price, stop_price, time_in_force, expire_at, extra, recorded_at)
        VALUES (p_order.content_hash, v_generation, p_stream, p_order.entry_id, p_order.entry_at,
            p_order.order_id, p_order.account, p_order.symbol, p_order.side, p_order.type,
            p_order.quantity::numeric, p_order.price::numeric, p_order.stop_price::numeric,
            p_order.time_in_force, p_order.expire_at, p_order.extra::jsonb, p_now)
        ON CONFLICT (content_hash, generation) DO NOTHING
        RETURNING entry_id, 'accepted', false, generation, NULL INTO v_recorded;
        IF FOUND THEN
            RETURN ARRAY[v_recorded];
        END IF;  -- else another worker was faster: look again
    END LOOP;

    IF (v_original.stream, v_original.entry_id) <> (p_stream, p_order.entry_id) THEN
        INSERT INTO duplicates (stream, entry_id, entry_at, order_id, extra, content_hash, generation,
            recorded_at)
        VALUES (p_stream, p_order.entry_id, p_order.entry_at, p_order.order_id,
            p_order.extra::jsonb, p_order.content_hash, v_original.generation, p_now)
        ON CONFLICT (stream, entry_id) DO NOTHING
        RETURNING entry_id, 'duplicate', false, generation, v_original.entry_id INTO v_recorded;
        IF FOUND THEN
            RETURN ARRAY[v_recorded];
        END IF;
    END IF;

    RETURN ARRAY(  -- what another worker that has this entry, too, has made it meanwhile
        SELECT ROW (p_order.entry_id, r.outcome, true, r.generation, r.original_entry_id)::recorded_entry
        FROM outcome_of(p_stream, p_order.entry_id, p_order.content_hash) r);
END
$$;

-- Batches of a stream go beside each other, but one with entries that are rejected for what is not in them (trimmed,
-- given up) goes alone: of two workers that hold such an entry, one of which takes it for an order, the second sees
-- what the first has recorded. So does the first batch by other rules than before, for these, too, may give an
-- entry that two workers hold two outcomes. An error
-- gives the shared lock back: two who kept it and wanted it alone would wait for each other. Gives the last id on
-- record before these rules, null for none.
CREATE FUNCTION enter_stream(
    p_stream text, p_window interval, p_envelope text[], p_reading int, p_alone boolean
) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    v_key bigint := hashtextextended(current_schema() || ' ' || p_stream, 0);
    v_newest text;
BEGIN
    IF NOT p_alone THEN
        BEGIN
            PERFORM pg_advisory_xact_lock_shared(v_key);
            SELECT newest_entry_id INTO STRICT v_newest FROM rules
            WHERE stream = p_stream AND dedupe_window = p_window AND envelope = p_envelope
                AND reading = p_reading;
            RETURN v_newest;
        EXCEPTION WHEN no_data_found THEN
        END;
    END IF;
    PERFORM pg_advisory_xact_lock(v_key);
    INSERT INTO rules AS r (stream, dedupe_window, envelope, reading, since, newest_entry_id)
    SELECT p_stream, p_window, p_envelope, p_reading, clock_timestamp(), greatest(
        (SELECT max(entry_id) FROM orders WHERE stream = p_stream),
        (SELECT max(entry_id) FROM duplicates WHERE stream = p_stream))
    ON CONFLICT (stream) DO UPDATE SET dedupe_window = excluded.dedupe_window, envelope = excluded.envelope,
        reading = excluded.reading, since = excluded.since, newest_entry_id = excluded.newest_entry_id
    WHERE (r.dedupe_window, r.envelope, r.reading) IS DISTINCT FROM (p_window, p_envelope, p_reading);
    RETURN (SELECT newest_entry_id FROM rules WHERE stream = p_stream);
END
$$;

-- The entries that are on record as accepted or as duplicates, and had another content hash by the rules of then:
-- all that was sent is the same. Another order that was given their id is none of them.
CREATE FUNCTION recorded_otherwise(p_stream text, p_orders order_entry[]) RETURNS text[]
LANGUAGE sql STABLE AS $$
    SELECT coalesce(array_agg(e.entry_id), '{}')
    FROM unnest(p_orders) e
    WHERE EXISTS (
        SELECT FROM (
            SELECT o.content_hash, o.order_id, o.extra, o.account, o.symbol, o.side, o.type, o.quantity,
                o.price, o.stop_price, o.time_in_force, o.expire_at
            FROM orders o WHERE o.stream = p_stream AND o.entry_id = e.entry_id
            UNION ALL
            SELECT d.content_hash, d.order_id, d.extra, o.account, o.symbol, o.side, o.type, o.quantity,
                o.price, o.stop_price, o.time_in_force, o.expire_at
            FROM duplicates d JOIN orders o USING (content_hash, generation)
            WHERE d.stream = p_stream AND d.entry_id = e.entry_id
            OFFSET 0
        ) r
        WHERE r.content_hash <> e.content_hash
            AND (r.order_id, r.extra, r.account, r.symbol, r.side, r.type, r.quantity, r.price, r.stop_price,
                r.time_in_force, r.expire_at)
            IS NOT DISTINCT FROM (e.order_id, e.extra::jsonb, e.account, e.symbol, e.side, e.type,
                e.quantity::numeric, e.price::numeric, e.stop_price::numeric, e.time_in_force,
                e.expire_at::timestamptz))
$$;

-- The entries with fields that are on record as trimmed after an instant, and not as what they are.
CREATE FUNCTION trimmed_since(
    p_stream text, p_after timestamptz, p_orders order_entry[], p_rejections rejected_entry[]
) RETURNS text[] LANGUAGE sql STABLE AS $$
    SELECT coalesce(array_agg(e.entry_id), '{}')
    FROM (
        SELECT o.entry_id, o.content_hash FROM unnest(p_orders) o
        UNION ALL SELECT r.entry_id, NULL FROM unnest(p_rejections) r WHERE r.code <> 'trimmed'
    ) e
    WHERE (SELECT r.recorded_at FROM rejections r
            WHERE r.stream = p_stream AND r.entry_id = e.entry_id AND r.code = 'trimmed') > p_after
        AND NOT EXISTS (SELECT FROM outcome_of(p_stream, e.entry_id, e.content_hash))
$$;

-- The rejections on record of these orders' entries; where the fields are not known, of others with their ids, too.
CREATE FUNCTION rejected_before(p_stream text, p_orders order_entry[]) RETURNS SETOF rejections
LANGUAGE sql STABLE AS $$
    SELECT r.* FROM unnest(p_orders) e
    CROSS JOIN LATERAL (
        SELECT * FROM rejections WHERE stream = p_stream AND entry_id = e.entry_id OFFSET 0) r
    WHERE r.code <> 'trimmed' AND r.fields = coalesce(e.fields, r.fields)
$$;

-- Record a batch in the one transaction of this call. Returns the ids of the orders accepted as generation
-- 0, by far the most, and a row for each other entry. An entry in none of them keeps an outcome that
-- stands under its id with other content: its id was given twice, or its rules have changed since.
--
-- Where orders are on record as rejected, what was sent has to tell whether they are those very entries, which
-- stay rejected, or others that were given their ids. Nothing is done then but that they are `asked` for: call
-- again, with their fields.
--
-- p_read_after is an `as_of` that was known before the entries were read, null for none. What is on record as
-- trimmed after it is left as it is, and said to be `trimmed`: it is this very entry, trimmed in the hand of
-- its worker, or an earlier one of its id. Who reads it once more can tell: `as_of` is later by then. So no
-- clock but that of Postgres counts, and a call that comes late carries its own instant.
--
-- The points are owed at once, or in hand: a row of points_in_hand tells until a later call, whose p_written
-- names it, says that they are written.
--
-- Two workers lock in the same order: the stream, the orders nobody has, sorted by content, then next
-- generations, sorted by content. Every statement sees what others committed before it (READ COMMITTED), so
-- an order that lost the insert finds the row it lost to. The tables are always probed row by row through
-- an index (subqueries that stay subqueries, no sequential scans): plans are cached while the tables are small.
-- For a batch of one order a statement costs more than what it does, so those that seldom have anything to do
-- are asked for first.
CREATE FUNCTION record_outcomes(
    p_stream text, p_window interval, p_envelope text[], p_reading int, p_orders order_entry[],
    p_rejections rejected_entry[], p_owe_points boolean, p_read_after timestamptz, p_written bigint[],
    OUT asked text[], OUT accepted text[], OUT others recorded_entry[], OUT rejected recorded_rejection[],
    OUT as_of timestamptz, OUT in_hand bigint
) LANGUAGE plpgsql
SET enable_seqscan = off
AS $$
#variable_conflict use_column
DECLARE
    v_read_after timestamptz := coalesce(p_read_after, '-infinity');
    v_alone boolean := false;
    v_newest text COLLATE "C";
    v_first text COLLATE "C";
    v_now timestamptz;
    v_order record;
    v_some_trimmed boolean;
    v_some_rejected boolean;
    v_trimmed text[] := '{}';
    v_again rejected_entry[];
    v_kept text[];
    v_rejected text[];
BEGIN
    IF cardinality(p_rejections) > 0 THEN
        v_alone := EXISTS (SELECT FROM unnest(p_rejections) e
            WHERE e.code IN ('trimmed', 'delivery_limit', 'not_storable'));
    END IF;
    v_newest := enter_stream(p_stream, p_window, p_envelope, p_reading, v_alone);
    v_now := clock_timestamp();  -- behind the lock: later than every trimmed entry that can be seen from here
    as_of := v_now;

    -- 0. Entries that others have found trimmed since they were read, or rejected. Most calls have none, and look
    -- no further than whether there may be any.
    SELECT v_read_after < (SELECT r.recorded_at FROM rejections r
            WHERE r.stream = p_stream AND r.code = 'trimmed' ORDER BY r.recorded_at DESC LIMIT 1),
        EXISTS (SELECT FROM rejections r
            WHERE r.stream = p_stream AND r.entry_id BETWEEN e.first AND e.last),
        e.first
    INTO v_some_trimmed, v_some_rejected, v_first
    FROM (SELECT min(entry_id COLLATE "C") AS first, max(entry_id COLLATE "C") AS last
        FROM unnest(p_orders)) e;

    IF v_some_rejected THEN
        asked := ARRAY(SELECT r.entry_id FROM rejected_before(p_stream, ARRAY(
            SELECT e FROM unnest(p_orders) e WHERE e.fields IS NULL)) r);
        IF cardinality(asked) > 0 THEN
            RETURN;
        END IF;
        v_again := ARRAY(
            SELECT ROW (r.entry_id, NULL, r.code, r.reason, r.order_id, r.symbol, r.fields)::rejected_entry
            FROM rejected_before(p_stream, ARRAY(
                SELECT e FROM unnest(p_orders) e WHERE e.fields IS NOT NULL)) r);
        p_orders := ARRAY(SELECT e FROM unnest(p_orders) e
            WHERE e.entry_id NOT IN (SELECT r.entry_id FROM unnest(v_again) r));
        p_rejections := p_rejections || v_again;
    END IF;

    IF v_some_trimmed THEN
        v_trimmed := trimmed_since(p_stream, v_read_after, p_orders, p_rejections);
        p_orders := ARRAY(SELECT e FROM unnest(p_orders) e WHERE e.entry_id <> ALL (v_trimmed));
        p_rejections := ARRAY(SELECT e FROM unnest(p_rejections) e WHERE e.entry_id <> ALL (v_trimmed));
    END IF;

    IF p_owe_points THEN
        DELETE FROM points_in_hand WHERE id = ANY (p_written);
        INSERT INTO point_backlog (stream, entry_id)
        SELECT p_stream, e.entry_id FROM unnest(p_orders) e
        UNION SELECT p_stream, e.entry_id FROM unnest(p_rejections) e
        ON CONFLICT DO NOTHING;
    ELSE
        WITH told AS (DELETE FROM points_in_hand WHERE id = ANY (p_written))
        INSERT INTO points_in_hand (stream, entry_ids) VALUES (p_stream, ARRAY(
            SELECT e.entry_id FROM unnest(p_orders) e
            UNION ALL SELECT e.entry_id FROM unnest(p_rejections) e))
        RETURNING id INTO in_hand;
    END IF;

    -- Entries of before the rules changed that come again. They keep their outcome.
    IF v_newest >= v_first THEN
        v_kept := recorded_otherwise(p_stream, p_orders);
        p_orders := ARRAY(SELECT e FROM unnest(p_orders) e WHERE e.entry_id <> ALL (v_kept));
    END IF;

    -- 1. Orders that nobody is known to have, the first of each content in this batch.
    WITH inserted AS (
        INSERT INTO orders (content_hash, generation, stream, entry_id, entry_at, order_id, account,
            symbol, side, type, quantity, price, stop_price, time_in_force, expire_at, extra, recorded_at)
        SELECT DISTINCT ON (e.content_hash) e.content_hash, 0, p_stream, e.entry_id,
            entry_instant(e.entry_ms), e.order_id, e.account, e.symbol, e.side, e.type,
            e.quantity::numeric, e.price::numeric, e.stop_price::numeric, e.time_in_force,
            e.expire_at::timestamptz, e.extra::jsonb, v_now
        FROM unnest(p_orders) WITH ORDINALITY e
        WHERE NOT e.known
        ORDER BY e.content_hash, e.ordinality
        ON CONFLICT (content_hash, generation) DO NOTHING
        RETURNING entry_id
    ) SELECT coalesce(array_agg(i.entry_id), '{}') INTO accepted FROM inserted i;
    others := '{}';

    IF cardinality(accepted) < cardinality(p_orders) THEN
        -- 2. Repeats of what is on record now, twins in this batch included. An order that finds itself is
        -- redelivered. Most contents have one generation, and one look finds it; of those with more, each
        -- entry's has to be looked for.
        WITH newest AS MATERIALIZED (
            SELECT e.entry_id, entry_instant(e.entry_ms) AS entry_at, e.order_id, e.extra, e.content_hash,
                o.generation, o.stream AS original_stream, o.entry_id AS original_entry_id,
                o.entry_at AS original_at
            FROM unnest(p_orders) e
            CROSS JOIN LATERAL (
                SELECT generation, stream, entry_id, entry_at FROM orders
                WHERE content_hash = e.content_hash ORDER BY generation DESC LIMIT 1) o
            WHERE e.entry_id NOT IN (SELECT unnest(accepted))
        ), found AS MATERIALIZED (
            SELECT entry_id, entry_at, order_id, extra, content_hash, generation, original_entry_id,
                original_entry_id = entry_id AND original_stream = p_stream AS itself
            FROM newest
            WHERE generation = 0 AND entry_at BETWEEN original_at - p_window AND original_at + p_window
            UNION ALL
            SELECT n.entry_id, n.entry_at, n.order_id, n.extra, n.content_hash, o.generation, o.entry_id,
                o.entry_id = n.entry_id AND o.stream = p_stream
            FROM newest n CROSS JOIN LATERAL original_of(n.content_hash, n.entry_at, p_window) o
            WHERE n.generation > 0
        ), inserted AS (
            INSERT INTO duplicates (stream, entry_id, entry_at, order_id, extra, content_hash,
                generation, recorded_at)
            SELECT p_stream, f.entry_id, f.entry_at, f.order_id, f.extra::jsonb, f.content_hash,
                f.generation, v_now
            FROM found f WHERE NOT itself
            ON CONFLICT (stream, entry_id) DO NOTHING
            RETURNING entry_id
        ) SELECT coalesce(array_agg(ROW (
            f.entry_id, CASE WHEN itself THEN 'accepted' ELSE 'duplicate' END, itself, f.generation,
            CASE WHEN NOT itself THEN f.original_entry_id END)::recorded_entry), '{}')
        INTO others
        FROM found f WHERE itself OR f.entry_id IN (SELECT i.entry_id FROM inserted i);
    END IF;

    IF cardinality(accepted) + cardinality(others) < cardinality(p_orders) THEN
        -- 3. Redelivered duplicates.
        SELECT others || coalesce(array_agg(ROW (
            e.entry_id, r.outcome, true, r.generation, r.original_entry_id)::recorded_entry), '{}')
        INTO others
        FROM unnest(p_orders) e CROSS JOIN LATERAL outcome_of(p_stream, e.entry_id, e.content_hash) r
        WHERE e.entry_id NOT IN (SELECT unnest(accepted))
            AND e.entry_id NOT IN (SELECT r.entry_id FROM unnest(others) r);
    END IF;

    -- 4. Content whose window has passed, or that Redis took to be stored: one by one, for each may be the
    -- original of the next.
    IF cardinality(accepted) + cardinality(others) < cardinality(p_orders) THEN
        FOR v_order IN
            SELECT e.entry_id, e.content_hash, e.order_id, e.account, e.symbol, e.side, e.type, e.quantity,
                e.price, e.stop_price, e.time_in_force, e.expire_at::timestamptz AS expire_at, e.extra,
                entry_instant(e.entry_ms) AS entry_at
            FROM unnest(p_orders) WITH ORDINALITY e
            WHERE e.entry_id NOT IN (SELECT unnest(accepted))
                AND e.entry_id NOT IN (SELECT r.entry_id FROM unnest(others) r)
            ORDER BY e.content_hash, e.ordinality
        LOOP
            others := others || record_next_generation(p_stream, p_window, v_now, v_order);
        END LOOP;
    END IF;

    IF cardinality(p_rejections) > 0 THEN
        WITH inserted AS (
            INSERT INTO rejections (stream, entry_id, entry_at, code, reason, order_id, symbol, fields,
                recorded_at)
            SELECT p_stream, e.entry_id, entry_instant(e.entry_ms), e.code, e.reason, e.order_id,
                e.symbol, e.fields, v_now
            FROM unnest(p_rejections) e
            WHERE (SELECT 1 FROM orders o
                    WHERE o.stream = p_stream AND o.entry_id = e.entry_id LIMIT 1) IS NULL
                AND (SELECT 1 FROM duplicates d
                    WHERE d.stream = p_stream AND d.entry_id = e.entry_id) IS NULL
            ON CONFLICT (stream, entry_id) DO NOTHING
            RETURNING entry_id
        ) SELECT coalesce(array_agg(i.entry_id), '{}') INTO v_rejected FROM inserted i;

        SELECT array_agg(ROW (r.entry_id, r.entry_id NOT IN (SELECT unnest(v_rejected)), r.code, r.reason,
            r.order_id, r.symbol)::recorded_rejection)
        INTO rejected
        FROM unnest(p_rejections) e
        CROSS JOIN LATERAL (
            SELECT * FROM rejections WHERE stream = p_stream AND entry_id = e.entry_id OFFSET 0) r
        WHERE r.code = e.code OR r.fields = e.fields;
    END IF;

    IF cardinality(v_trimmed) > 0 THEN
        others := others || ARRAY(
            SELECT ROW (id, 'trimmed', true, NULL, NULL)::recorded_entry FROM unnest(v_trimmed) id);
    END IF;
END
$$;
