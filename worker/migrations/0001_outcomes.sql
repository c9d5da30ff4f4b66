-- The three outcomes, the points that are not written yet, and what was sent again.
-- Runs with the search path set to DATABASE_SCHEMA: everything lives there.
--
-- What indexes are made of compares as bytes: in the order of a language, an insert takes a fifth more of Postgres'
-- time, and an update of the system's libraries may break the index.

CREATE TABLE orders (
    content_hash  bytea       NOT NULL,
    generation    int         NOT NULL,
    stream        text COLLATE "C" NOT NULL,
    entry_id      text COLLATE "C" NOT NULL,
    entry_at      timestamptz NOT NULL,
    order_id      text COLLATE "C" NOT NULL,
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
-- What became of order A-17? An order id is no content and not unique.
-- B-tree and not hash: a producer that sends one order without end gives its id to each entry, and an insert into a
-- hash index goes through all that have the same key.
CREATE INDEX orders_order_id_idx ON orders (order_id);
-- What was recorded within the last minute? BRIN, for rows come in the order of that time: some kilobytes,
-- next to nothing for an insert.
CREATE INDEX orders_recorded_at_idx ON orders USING brin (recorded_at) WITH (autosummarize = on);

CREATE TABLE duplicates (
    stream       text COLLATE "C" NOT NULL,
    entry_id     text COLLATE "C" NOT NULL,
    entry_at     timestamptz NOT NULL,
    order_id     text COLLATE "C" NOT NULL,
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
CREATE INDEX duplicates_order_id_idx ON duplicates (order_id);
CREATE INDEX duplicates_recorded_at_idx ON duplicates USING brin (recorded_at) WITH (autosummarize = on);

CREATE TABLE rejections (
    stream      text COLLATE "C" NOT NULL,
    entry_id    text COLLATE "C" NOT NULL,
    entry_at    timestamptz NOT NULL,
    code        text        NOT NULL,
    reason      text        NOT NULL,
    order_id    text COLLATE "C",
    symbol      text,
    fields      bytea[]     NOT NULL,
    recorded_at timestamptz NOT NULL,
    CONSTRAINT rejections_pkey PRIMARY KEY (stream, entry_id)
);
COMMENT ON COLUMN rejections.fields IS 'names and values in turn, byte for byte as sent';
-- Was any entry of this stream found trimmed since a batch was read? Each batch asks.
CREATE INDEX rejections_trimmed_idx ON rejections (stream, recorded_at) WHERE code = 'trimmed';
CREATE INDEX rejections_order_id_idx ON rejections (order_id);
CREATE INDEX rejections_recorded_at_idx ON rejections USING brin (recorded_at) WITH (autosummarize = on);

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
    stream   text COLLATE "C" NOT NULL,
    entry_id text COLLATE "C" NOT NULL,
    noted_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    refusal  text,
    CONSTRAINT point_backlog_pkey PRIMARY KEY (stream, entry_id)
);
-- Those that wait, the oldest first: however many InfluxDB has refused, none of these is gone through for them.
CREATE INDEX point_backlog_owed_idx ON point_backlog (noted_at) WHERE refusal IS NULL;
COMMENT ON TABLE point_backlog IS 'entries whose point InfluxDB does not have yet';
COMMENT ON COLUMN point_backlog.refusal IS 'what InfluxDB said when it refused the point for good';

-- Who dies between its commit and its write of points leaves a row here, and somebody else owes them then. Else
-- only the entries' redelivery would tell, and a Redis that lost its data knows of none.
CREATE TABLE points_in_hand (
    id        bigint      GENERATED ALWAYS AS IDENTITY,
    stream    text COLLATE "C" NOT NULL,
    entry_ids text[]      NOT NULL,
    noted_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT points_in_hand_pkey PRIMARY KEY (id)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
COMMENT ON TABLE points_in_hand IS 'batches on record whose points a worker is about to write';

-- By which rules a stream's entries are recorded now, and how far it had come when these began.
CREATE TABLE rules (
    stream          text COLLATE "C" NOT NULL,
    dedupe_window   interval    NOT NULL,
    envelope        text[]      NOT NULL,
    reading         int         NOT NULL,
    since           timestamptz NOT NULL,
    newest_entry_id text COLLATE "C",
    CONSTRAINT rules_pkey PRIMARY KEY (stream)
);
COMMENT ON COLUMN rules.reading IS 'of the worker: rises where entries come to something else than before';
COMMENT ON COLUMN rules.newest_entry_id IS 'the last id, as bytes, of the orders and duplicates on record before';

-- Which dead letter an entry comes from. Redis knows it, too, and may lose it.
CREATE TABLE replays (
    stream      text COLLATE "C" NOT NULL,
    entry_id    text COLLATE "C" NOT NULL,
    origin_id   text COLLATE "C" NOT NULL,
    changed     text[]      NOT NULL,
    replayed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT replays_pkey PRIMARY KEY (stream, entry_id)
);
COMMENT ON TABLE replays IS 'dead letters that were sent again: entry_id is the rejected entry origin_id';
COMMENT ON COLUMN replays.changed IS 'names of the fields that were set or left out';
CREATE INDEX replays_origin_idx ON replays (stream, origin_id);
