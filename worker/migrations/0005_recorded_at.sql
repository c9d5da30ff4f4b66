-- What was recorded within the last minute? BRIN, for rows come in the order of that time: some kilobytes,
-- next to nothing for an insert.
CREATE INDEX orders_recorded_at_idx ON orders USING brin (recorded_at) WITH (autosummarize = on);
CREATE INDEX duplicates_recorded_at_idx ON duplicates USING brin (recorded_at) WITH (autosummarize = on);
CREATE INDEX rejections_recorded_at_idx ON rejections USING brin (recorded_at) WITH (autosummarize = on);
