/*-------------------------------------------------------------------------
 *
 * version.c
 *	  Is the extension in the database the one that the library is made for?
 *
 * Crash story: reads only.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/pg_extension.h"
#include "commands/dbcommands.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/inval.h"
#include "utils/rel.h"

#include "timpush.h"
#include "version.h"

/* The version of the extension in this database, or NULL. */
static char *
installed_version(void)
{
	Relation	rel = table_open(ExtensionRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	char	   *version = NULL;

	ScanKeyInit(&key, Anum_pg_extension_extname, BTEqualStrategyNumber, F_NAMEEQ,
				CStringGetDatum("timpush"));
	scan = systable_beginscan(rel, ExtensionNameIndexId, true, NULL, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
		bool		isnull;
		Datum		datum = heap_getattr(tuple, Anum_pg_extension_extversion,
										 RelationGetDescr(rel), &isnull);

		if (!isnull)
			version = TextDatumGetCString(datum);
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return version;
}

/* push_outbox of an extension whose version is ours */
static Oid	known = InvalidOid;

/* A script that updates the extension changes some table or other. */
static void
forget(Datum arg pg_attribute_unused(), Oid relid pg_attribute_unused())
{
	known = InvalidOid;
}

/* Returns the version that is not ours, or NULL; looks once in a while. */
static const char *
other_version(Oid outbox)
{
	static bool registered = false;
	const char *version;

	if (known == outbox)
		return NULL;
	if (!registered)
		CacheRegisterRelcacheCallback(forget, (Datum) 0);
	registered = true;
	version = installed_version();
	if (version == NULL)
		return "unknown";
	if (strcmp(version, TIMPUSH_VERSION) != 0)
		return version;
	known = outbox;
	return NULL;
}

bool
version_matches(Oid outbox)
{
	return other_version(outbox) == NULL;
}

void
version_check(Oid outbox)
{
	const char *version = other_version(outbox);

	if (version != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("library of timpush is version %s, but the extension in database \"%s\" is version %s",
						TIMPUSH_VERSION, get_database_name(MyDatabaseId), version),
				 errhint(VERSION_HINT)));
}
