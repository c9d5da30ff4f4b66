-- The three outcomes, the points owed, and the one function that records a batch.
-- Runs with the search path set to DATABASE_SCHEMA: everything lives there.

CREATE TABLE orders (
    content_hash  bytea       NOT NULL,
    generation    int         NOT NULL,
    stream        text        NOT NULL,
    entry_id      text        NOT NULL,
    entry_at      timestamptz NOT NULL,
    order_id      text        NOT NULL,
    account       text,
    symbol        text        NOT NULL,
    side          text        NOT NULL,
    type          text        NOT NULL,
    quantity      numeric     NOT NULL,
    price         numeric,
    stop_price    numeric,
    time_in_force text        NOT NULL,
    expire_at     timestamptz,
    notional      numeric     GENERATED ALWAYS AS (quantity * price) STORED,
    extra         jsonb,
    recorded_at   timestamptz NOT NULL,
    CONSTRAINT orders_pkey PRIMARY KEY (content_hash, generation),
    CONSTRAINT orders_content_hash_is_sha256 CHECK (length(content_hash) = 32),
    CONSTRAINT orders_quantity_is_positive CHECK (quantity > 0)
);
COMMENT ON TABLE orders IS 'accepted: each content once in its window; generation counts its windows';
-- Not unique: a Redis that lost its data may give an id again, to another order, which must not be lost.
CREATE INDEX orders_entry_idx ON orders (stream, entry_id);
-- A content that is sent for years with a short window has very many generations. Most contents have one.
CREATE INDEX orders_later_generations_idx ON orders (content_hash, entry_at) WHERE generation > 0;

CREATE TABLE duplicates (
    stream       text        NOT NULL,
    entry_id     text        NOT NULL,
    entry_at     timestamptz NOT NULL,
    order_id     text        NOT NULL,
    extra        jsonb,
    content_hash bytea       NOT NULL,
    generation   int         NOT NULL,
    recorded_at  timestamptz NOT NULL,
    CONSTRAINT duplicates_pkey PRIMARY KEY (stream, entry_id),
    CONSTRAINT duplicates_original_fkey
        FOREIGN KEY (content_hash, generation) REFERENCES orders (content_hash, generation)
);
COMMENT ON TABLE duplicates IS 'suppressed: a repeat within the window of the order it references';
CREATE INDEX duplicates_original_idx ON duplicates (content_hash, generation);

CREATE TABLE rejections (
    stream      text        NOT NULL,
    entry_id    text        NOT NULL,
    entry_at    timestamptz NOT NULL,
    code        text        NOT NULL,
    reason      text        NOT NULL,
    order_id    text,
    symbol      text,
    fields      bytea[]     NOT NULL,
    recorded_at timestamptz NOT NULL,
    CONSTRAINT rejections_pkey PRIMARY KEY (stream, entry_id)
);
COMMENT ON COLUMN rejections.fields IS 'names and values in turn, byte for byte as sent';

CREATE VIEW outcomes AS
SELECT stream, entry_id, 'accepted' AS outcome, order_id, symbol, content_hash,
       NULL::text AS original_entry_id, NULL::text AS code, recorded_at
FROM orders
UNION ALL
SELECT d.stream, d.entry_id, 'duplicate', d.order_id, o.symbol, d.content_hash,
       o.entry_id, NULL, d.recorded_at
FROM duplicates d JOIN orders o USING (content_hash, generation)
UNION ALL
SELECT stream, entry_id, 'rejected', order_id, symbol, NULL, NULL, code, recorded_at
FROM rejections;

CREATE TABLE point_backlog (
    stream   text        NOT NULL,
    entry_id text        NOT NULL,
    noted_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    refusal  text,
    CONSTRAINT point_backlog_pkey PRIMARY KEY (stream, entry_id)
);
-- Those that wait, the oldest first: however many InfluxDB has refused, none of these is gone through for them.
CREATE INDEX point_backlog_owed_idx ON point_backlog (noted_at) WHERE refusal IS NULL;
COMMENT ON TABLE point_backlog IS 'entries whose point InfluxDB does not have yet';
COMMENT ON COLUMN point_backlog.refusal IS 'what InfluxDB said when it refused the point for good';

-- One order to record. Decimals travel as text, cast here, exact. `known`: Redis says it is stored already.
CREATE TYPE order_entry AS (
    entry_id text, entry_ms bigint, known boolean, content_hash bytea, order_id text, account text,
    symbol text, side text, type text, quantity text, price text, stop_price text,
    time_in_force text, expire_at timestamptz, extra text
);

CREATE TYPE rejected_entry AS (
    entry_id text, entry_ms bigint, code text, reason text, order_id text, symbol text, fields bytea[]
);

-- Milliseconds since 1970 as an instant; infinity beyond what InfluxDB can tell, for rejections only.
CREATE FUNCTION entry_instant(ms bigint) RETURNS timestamptz
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
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

-- Record one order whose content's window has passed as the next generation, or as a repeat of what
-- another worker made it meanwhile. Gives nothing where a duplicate of other content has its entry's id.
CREATE FUNCTION record_next_generation(
    p_stream text, p_window interval, p_now timestamptz, p_order record
) RETURNS recorded_entry[] LANGUAGE plpgsql AS $$
DECLARE
    v_original orders;
    v_recorded recorded_entry;
BEGIN
    LOOP
        SELECT * INTO v_original
        FROM original_of(p_order.content_hash, p_order.entry_at, p_window);
        IF FOUND THEN
            INSERT INTO duplicates (stream, entry_id, entry_at, order_id, extra, content_hash, generation,
                recorded_at)
            VALUES (p_stream, p_order.entry_id, p_order.entry_at, p_order.order_id,
                p_order.extra::jsonb, p_order.content_hash, v_original.generation, p_now)
            ON CONFLICT (stream, entry_id) DO NOTHING
            RETURNING entry_id, 'duplicate', false, generation, v_original.entry_id INTO v_recorded;
            RETURN CASE WHEN FOUND THEN ARRAY[v_recorded] ELSE '{}' END;
        END IF;
        INSERT INTO orders (content_hash, generation, stream, entry_id, entry_at, order_id, account,
            symbol, side, type, quantity, price, stop_price, time_in_force, expire_at, extra, recorded_at)
        SELECT p_order.content_hash, coalesce(
                (SELECT o.generation + 1 FROM orders o WHERE o.content_hash = p_order.content_hash
                ORDER BY o.generation DESC LIMIT 1), 0),
            p_stream, p_order.entry_id, p_order.entry_at, p_order.order_id, p_order.account,
            p_order.symbol, p_order.side, p_order.type, p_order.quantity::numeric,
            p_order.price::numeric, p_order.stop_price::numeric, p_order.time_in_force,
            p_order.expire_at, p_order.extra::jsonb, p_now
        ON CONFLICT (content_hash, generation) DO NOTHING
        RETURNING entry_id, 'accepted', false, generation, NULL INTO v_recorded;
        IF FOUND THEN
            RETURN ARRAY[v_recorded];
        END IF;  -- else another worker was faster: look again
    END LOOP;
END
$$;

-- Record a batch in the one transaction of this call. Returns the ids of the orders accepted as generation
-- 0, by far the most, and a row for each other entry. An entry in neither of them keeps an outcome that
-- stands under its id with other content: its id was given twice, or its rules have changed since.
--
-- Two workers lock in the same order: first the orders nobody has, sorted by content, then next
-- generations, sorted by content. Every statement sees what others committed before it (READ COMMITTED), so
-- an order that lost the insert finds the row it lost to. The tables are always probed row by row through
-- an index (subqueries with LIMIT, no sequential scans): plans are cached while the tables are still small.
CREATE FUNCTION record_outcomes(
    p_stream text, p_window interval, p_orders order_entry[], p_rejections rejected_entry[],
    p_owe_points boolean, OUT accepted text[], OUT others recorded_entry[]
) LANGUAGE plpgsql
SET enable_seqscan = off
AS $$
#variable_conflict use_column
DECLARE
    v_now timestamptz := clock_timestamp();
    v_order record;
    v_rejected text[];
BEGIN
    IF p_owe_points THEN
        INSERT INTO point_backlog (stream, entry_id)
        SELECT p_stream, e.entry_id FROM unnest(p_orders) e
        UNION SELECT p_stream, e.entry_id FROM unnest(p_rejections) e
        ON CONFLICT DO NOTHING;
    END IF;

    -- 1. Orders nobody has, the first of each content in this batch.
    WITH inserted AS (
        INSERT INTO orders (content_hash, generation, stream, entry_id, entry_at, order_id, account,
            symbol, side, type, quantity, price, stop_price, time_in_force, expire_at, extra, recorded_at)
        SELECT DISTINCT ON (e.content_hash) e.content_hash, 0, p_stream, e.entry_id,
            entry_instant(e.entry_ms), e.order_id, e.account, e.symbol, e.side, e.type,
            e.quantity::numeric, e.price::numeric, e.stop_price::numeric, e.time_in_force, e.expire_at,
            e.extra::jsonb, v_now
        FROM unnest(p_orders) WITH ORDINALITY e
        WHERE NOT e.known OR (
            SELECT true FROM orders o WHERE o.content_hash = e.content_hash LIMIT 1) IS NULL
        ORDER BY e.content_hash, e.ordinality
        ON CONFLICT (content_hash, generation) DO NOTHING
        RETURNING entry_id
    ) SELECT coalesce(array_agg(i.entry_id), '{}') INTO accepted FROM inserted i;
    others := '{}';

    IF cardinality(accepted) < cardinality(p_orders) THEN
        -- 2. Redelivered entries keep the outcome they have.
        SELECT coalesce(array_agg(ROW (
            e.entry_id, r.outcome, true, r.generation, r.original_entry_id)::recorded_entry), '{}')
        INTO others
        FROM unnest(p_orders) e CROSS JOIN LATERAL outcome_of(p_stream, e.entry_id, e.content_hash) r
        WHERE e.entry_id NOT IN (SELECT unnest(accepted));

        -- 3. Repeats of what is on record now, twins in this batch included.
        WITH repeated AS (
            SELECT e.entry_id, e.entry_ms, e.order_id, e.extra, e.content_hash, o.generation,
                o.entry_id AS original_entry_id
            FROM unnest(p_orders) e
            CROSS JOIN LATERAL original_of(e.content_hash, entry_instant(e.entry_ms), p_window) o
            WHERE e.entry_id NOT IN (SELECT unnest(accepted))
                AND e.entry_id NOT IN (SELECT r.entry_id FROM unnest(others) r)
        ), inserted AS (
            INSERT INTO duplicates (stream, entry_id, entry_at, order_id, extra, content_hash,
                generation, recorded_at)
            SELECT p_stream, r.entry_id, entry_instant(r.entry_ms), r.order_id, r.extra::jsonb,
                r.content_hash, r.generation, v_now
            FROM repeated r
            ON CONFLICT (stream, entry_id) DO NOTHING
            RETURNING entry_id
        )
        SELECT others || coalesce(array_agg(
            ROW (entry_id, 'duplicate', false, r.generation, r.original_entry_id)::recorded_entry), '{}')
        INTO others
        FROM repeated r JOIN inserted USING (entry_id);
    END IF;

    -- 4. Content whose window has passed, one by one, for each may be the original of the next.
    IF cardinality(accepted) + cardinality(others) < cardinality(p_orders) THEN
        FOR v_order IN
            SELECT e.*, entry_instant(e.entry_ms) AS entry_at FROM unnest(p_orders) WITH ORDINALITY e
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
            WHERE NOT EXISTS (SELECT FROM orders o
                    WHERE o.stream = p_stream AND o.entry_id = e.entry_id)
                AND NOT EXISTS (SELECT FROM duplicates d
                    WHERE d.stream = p_stream AND d.entry_id = e.entry_id)
            ON CONFLICT (stream, entry_id) DO NOTHING
            RETURNING entry_id
        ) SELECT coalesce(array_agg(i.entry_id), '{}') INTO v_rejected FROM inserted i;

        SELECT others || coalesce(array_agg(ROW (e.entry_id, 'rejected',
            e.entry_id NOT IN (SELECT unnest(v_rejected)), NULL, NULL)::recorded_entry), '{}')
        INTO others
        FROM unnest(p_rejections) e
        WHERE EXISTS (SELECT FROM rejections r WHERE r.stream = p_stream AND r.entry_id = e.entry_id);
    END IF;
END
$$;
