-- The tables of every contestant but Ordergate: as few indexes as the job can do with.
CREATE TABLE orders (
    content_hash  bytea PRIMARY KEY,
    entry_id      text NOT NULL,
    order_id      text NOT NULL,
    account       text,
    symbol        text NOT NULL,
    side          text NOT NULL,
    type          text NOT NULL,
    quantity      numeric NOT NULL,
    price         numeric,
    stop_price    numeric,
    time_in_force text NOT NULL
);
CREATE TABLE duplicates (
    entry_id      text PRIMARY KEY,
    order_id      text NOT NULL,
    content_hash  bytea NOT NULL
);
