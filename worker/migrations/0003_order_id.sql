-- What became of order A-17? An order id is no content and not unique.
-- B-tree and not hash: a producer that sends one order without end gives its id to each entry, and an insert into a
-- hash index goes through all that have the same key.
CREATE INDEX orders_order_id_idx ON orders (order_id);
CREATE INDEX duplicates_order_id_idx ON duplicates (order_id);
CREATE INDEX rejections_order_id_idx ON rejections (order_id);
