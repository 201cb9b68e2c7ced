--
-- Every object of the extension says what it is
--
\pset format unaligned
\pset tuples_only on

-- objects that the extension owns
SELECT o
FROM pg_depend d, pg_describe_object(d.classid, d.objid, d.objsubid) o
WHERE d.deptype = 'e' AND d.refclassid = 'pg_extension'::regclass
  AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'timpush')
  AND d.classid <> 'pg_type'::regclass
  AND NOT EXISTS (SELECT FROM pg_description c WHERE c.classoid = d.classid AND c.objoid = d.objid AND c.objsubid = 0 AND c.description <> '')
ORDER BY o COLLATE "C";

-- what belongs to its tables: columns, sequences, indexes, triggers, policies
WITH tables AS (
  SELECT c.oid
  FROM pg_depend d JOIN pg_class c ON c.oid = d.objid
  WHERE d.deptype = 'e' AND d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_extension'::regclass
    AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'timpush') AND c.relkind = 'r'),
parts AS (
  SELECT 'pg_class'::regclass AS classid, a.attrelid AS objid, a.attnum AS objsubid
  FROM pg_attribute a WHERE a.attrelid IN (SELECT oid FROM tables) AND a.attnum > 0 AND NOT a.attisdropped
  UNION ALL
  SELECT 'pg_class'::regclass, d.objid, 0
  FROM pg_depend d JOIN pg_class s ON s.oid = d.objid AND s.relkind = 'S'
  WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid IN (SELECT oid FROM tables)
  UNION ALL
  SELECT 'pg_class'::regclass, i.indexrelid, 0
  FROM pg_index i WHERE i.indrelid IN (SELECT oid FROM tables) AND NOT i.indisprimary
  UNION ALL
  SELECT 'pg_trigger'::regclass, t.oid, 0
  FROM pg_trigger t WHERE t.tgrelid IN (SELECT oid FROM tables) AND NOT t.tgisinternal
  UNION ALL
  SELECT 'pg_policy'::regclass, p.oid, 0
  FROM pg_policy p WHERE p.polrelid IN (SELECT oid FROM tables))
SELECT o
FROM parts p, pg_describe_object(p.classid, p.objid, p.objsubid) o
WHERE NOT EXISTS (SELECT FROM pg_description c
                  WHERE c.classoid = p.classid AND c.objoid = p.objid AND c.objsubid = p.objsubid AND c.description <> '')
ORDER BY o COLLATE "C";

-- what is said of the functions
SELECT p.proname, obj_description(p.oid, 'pg_proc')
FROM pg_depend d JOIN pg_proc p ON p.oid = d.objid
WHERE d.classid = 'pg_proc'::regclass AND d.deptype = 'e'
  AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'timpush')
ORDER BY p.proname COLLATE "C";
