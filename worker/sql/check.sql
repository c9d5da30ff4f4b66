-- name: server
-- What Postgres says of itself.
SELECT extract(epoch FROM clock_timestamp())::float8 * 1000 AS now_ms,
       current_setting('server_version') AS version,
       current_setting('server_version_num')::int AS version_number,
       pg_is_in_recovery() AS replica,
       current_setting('transaction_read_only')::bool AS read_only,
       CASE (SELECT source FROM pg_settings WHERE name = 'default_transaction_read_only')
           WHEN 'database' THEN ARRAY[format(
               'ALTER DATABASE %I RESET default_transaction_read_only', current_database())]
           WHEN 'user' THEN ARRAY[format(
               'ALTER ROLE %I RESET default_transaction_read_only', current_user)]
           WHEN 'database user' THEN ARRAY[format(
               'ALTER ROLE %I IN DATABASE %I RESET default_transaction_read_only', current_user, current_database())]
           ELSE ARRAY['ALTER SYSTEM SET default_transaction_read_only = off', 'SELECT pg_reload_conf()']
       END AS writable_again,
       current_user::text AS role,
       current_setting('fsync')::bool AS fsync,
       current_setting('full_page_writes')::bool AS full_page_writes,
       current_setting('synchronous_commit') <> 'off' AS synchronous_commit;

-- name: deciding_index
-- The index behind the primary key of `orders`; no row where there is none.
SELECT i.indisunique AND i.indimmediate AS is_unique,
       i.indisvalid AND i.indisready AND i.indislive AS is_valid,
       (SELECT array_agg(a.attname::text ORDER BY k.place) FROM unnest(i.indkey) WITH ORDINALITY AS k (number, place)
        JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.number) AS columns
FROM pg_index i WHERE i.indrelid = to_regclass('orders') AND i.indisprimary;

-- name: rules
-- By which rules streams are recorded.  $1 streams
SELECT stream, (extract(epoch FROM dedupe_window) * 1000)::bigint AS window_ms, envelope, reading, since
FROM rules WHERE stream = ANY ($1::text[]) ORDER BY stream;

-- name: lacking_rights
-- What the worker's role may not do and must.
SELECT needed.privilege || ' on ' || needed.relation AS lacking
FROM (VALUES ('orders', 'SELECT'), ('orders', 'INSERT'), ('duplicates', 'SELECT'), ('duplicates', 'INSERT'),
    ('rejections', 'SELECT'), ('rejections', 'INSERT'), ('point_backlog', 'SELECT'), ('point_backlog', 'INSERT'),
    ('point_backlog', 'UPDATE'), ('point_backlog', 'DELETE'), ('points_in_hand', 'SELECT'),
    ('points_in_hand', 'INSERT'), ('points_in_hand', 'UPDATE'), ('points_in_hand', 'DELETE'),
    ('rules', 'SELECT'), ('rules', 'INSERT'), ('rules', 'UPDATE'), ('schema_migrations', 'SELECT')
) AS needed (relation, privilege)
WHERE NOT has_table_privilege(to_regclass(needed.relation), needed.privilege)
UNION ALL
SELECT 'EXECUTE on ' || p.proname FROM pg_proc p
WHERE p.pronamespace = current_schema()::regnamespace AND NOT has_function_privilege(p.oid, 'EXECUTE');
