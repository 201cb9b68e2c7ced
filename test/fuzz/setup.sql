CREATE EXTENSION timpush;
CREATE ROLE fuzz_app;
GRANT USAGE ON FOREIGN DATA WRAPPER timpush TO fuzz_app;
CREATE SERVER base FOREIGN DATA WRAPPER timpush OPTIONS (sdkappid '88888888', region 'singapore');
ALTER SERVER base OWNER TO fuzz_app;
ALTER TABLE push_outbox ADD CONSTRAINT fuzz_stop CHECK (id IS NULL);
CREATE DOMAIN fuzz_domain AS text CHECK (VALUE <> 'no');
CREATE TABLE fuzz_row (t text, a text[], c char(8), n name, i integer, j jsonb, z timestamptz, d fuzz_domain, e text);
CREATE FUNCTION timpush_fuzz(target text, arguments text[]) RETURNS void AS '$libdir/timpush' LANGUAGE C STRICT;
