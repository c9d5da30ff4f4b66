-- What became of order A-17? An order id is no content and not unique.
-- Hash and not B-tree: it is only ever asked for whole, its size does not grow with the ids' length (up to 128
-- characters), and with random ids an insert costs about half as much.
CREATE INDEX orders_order_id_idx ON orders USING hash (order_id);
CREATE INDEX duplicates_order_id_idx ON duplicates USING hash (order_id);
CREATE INDEX rejections_order_id_idx ON rejections USING hash (order_id);
