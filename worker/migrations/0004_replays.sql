-- Which dead letter an entry comes from. Redis knows it, too, and may lose it.
CREATE TABLE replays (
    stream      text        NOT NULL,
    entry_id    text        NOT NULL,
    origin_id   text        NOT NULL,
    changed     text[]      NOT NULL,
    replayed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT replays_pkey PRIMARY KEY (stream, entry_id)
);
COMMENT ON TABLE replays IS 'dead letters that were sent again: entry_id is the rejected entry origin_id';
COMMENT ON COLUMN replays.changed IS 'names of the fields that were set or left out';
CREATE INDEX replays_origin_idx ON replays (stream, origin_id);
