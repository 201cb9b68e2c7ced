/*-------------------------------------------------------------------------
 *
 * server.c
 *	  Options of a server and of its user mapping, as a checked struct.
 *
 * An SDKAppID is a foreign server, its credentials are the user mapping FOR
 * PUBLIC of that server, as with dblink_fdw.  The validator lets no unknown,
 * malformed or missing option into the catalog; server_load() reads them back.
 *
 * Crash story: nothing here has state that could be lost.  The catalog is the
 * only source, and invalidation messages tell when to read it again.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <math.h>
#include <netinet/in.h>
#include <sys/stat.h>
#include <unistd.h>

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/reloptions.h"
#include "access/table.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_foreign_data_wrapper.h"
#include "catalog/pg_foreign_server.h"
#include "catalog/pg_user_mapping.h"
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "foreign/foreign.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "storage/fd.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#include "compat.h"
#include "server.h"
#include "timpush.h"
#include "usersig.h"

/* The gateway gives up after 3 s, a client has to wait longer (1047/34620). */
#define MIN_REQUEST_TIMEOUT		3001
#define MAX_TIMEOUT				3600000
#define MAX_RATE				1000000.0

/* One in nearly three hours; what is less was meant to be something else. */
#define MIN_RATE				0.0001

#define MAX_KEY_FILE_SIZE		4096

PG_FUNCTION_INFO_V1(timpush_fdw_validator);

typedef enum OptionKind
{
	OPTION_TEXT,				/* any text that is not empty */
	OPTION_INTEGER,				/* min..max */
	OPTION_RATE,				/* 0, or MIN_RATE..MAX_RATE */
	OPTION_DURATION_MS,			/* min..max, with PostgreSQL's units */
	OPTION_DURATION_S,			/* the same, a bare number being seconds */
	OPTION_REGION,				/* one of the table below */
	OPTION_HOST,				/* name[:port] */
	OPTION_FILE					/* absolute path; needs a privilege */
} OptionKind;

typedef struct OptionSpec
{
	const char *name;
	Oid			catalog;
	OptionKind	kind;
	bool		required;
	int64		min;
	int64		max;
	const char *hint;
} OptionSpec;

static const OptionSpec option_specs[] = {
	{"sdkappid", ForeignServerRelationId, OPTION_INTEGER, true, 1, PG_UINT32_MAX,
	"The SDKAppID is the number that the console shows for the app, from 1 to 4294967295."},
	{"region", ForeignServerRelationId, OPTION_REGION, false, 0, 0, NULL},
	{"host", ForeignServerRelationId, OPTION_HOST, false, 0, 0,
	"Give a host name and optionally a port, such as \"gateway.example.com:8443\", without a scheme or path."},
	{"requests_per_second", ForeignServerRelationId, OPTION_RATE, false, 0, 0,
	"Give 0 for no limit, or a number from 0.0001 to 1000000."},
	{"accounts_per_second", ForeignServerRelationId, OPTION_RATE, false, 0, 0,
	"Give 0 for no limit, or a number from 0.0001 to 1000000."},
	{"accounts_per_request", ForeignServerRelationId, OPTION_INTEGER, false, 1, 500,
	"Give a number from 1 to 500; the API takes no more accounts in a call."},
	{"max_in_flight", ForeignServerRelationId, OPTION_INTEGER, false, 1, 1000,
	"Give a number of requests from 1 to 1000."},
	{"connect_timeout", ForeignServerRelationId, OPTION_DURATION_MS, false, 1, MAX_TIMEOUT,
	"Give a time from 1ms to 1h, such as \"3s\"."},
	{"request_timeout", ForeignServerRelationId, OPTION_DURATION_MS, false, MIN_REQUEST_TIMEOUT, MAX_TIMEOUT,
	"Give a time of more than 3s, because the API itself gives up only then, and up to 1h."},
	{"max_unknown_resends", ForeignServerRelationId, OPTION_INTEGER, false, -1, 1000,
	"Give a number from 0 to 1000, or -1 to go on until a definite answer or expiry."},
	{"ca_file", ForeignServerRelationId, OPTION_FILE, false, 0, 0,
	"Give the absolute path of a file of PEM certificates on the database server."},
	{"proxy", ForeignServerRelationId, OPTION_TEXT, false, 0, 0,
	"Give the address of an HTTP proxy, such as \"http://proxy.example.com:3128\"."},
	{"identifier", UserMappingRelationId, OPTION_TEXT, true, 0, 0,
	"The identifier is an administrator account of the app, such as \"administrator\"."},
	{"secret_key", UserMappingRelationId, OPTION_TEXT, false, 0, 0,
	"The key is the text that the console shows for the app."},
	{"secret_key_file", UserMappingRelationId, OPTION_FILE, false, 0, 0,
	"Give the absolute path of a file on the database server that holds the key."},
	{"usersig", UserMappingRelationId, OPTION_TEXT, false, 0, 0,
	"Give a UserSig made elsewhere for the identifier."},
	{"usersig_lifetime", UserMappingRelationId, OPTION_DURATION_S, false, 60, 315360000,
	"Give a time from 1min to 3650d, such as \"24h\"."},
};

/* Hosts by data centre: Tencent documents 1047/67553, 67816 and 78839. */
static const struct
{
	const char *region;
	const char *host;
}			region_hosts[] = {
	{"china", "console.tim.qq.com"},
	{"singapore", "adminapisgp.im.qcloud.com"},
	{"seoul", "adminapikr.im.qcloud.com"},
	{"frankfurt", "adminapiger.im.qcloud.com"},
	{"siliconvalley", "adminapiusa.im.qcloud.com"},
	{"jakarta", "adminapiidn.im.qcloud.com"},
	{"tokyo", "adminapijpn.im.qcloud.com"},
	{"riyadh", "adminapiksa.im.qcloud.com"},
};

static uint64 generation = 0;
static bool callbacks_registered = false;

static const OptionSpec *
find_spec(const char *name, Oid catalog)
{
	for (size_t i = 0; i < lengthof(option_specs); i++)
	{
		if (option_specs[i].catalog == catalog &&
			strcmp(option_specs[i].name, name) == 0)
			return &option_specs[i];
	}
	return NULL;
}

/* The options that the object takes, for a hint. */
static char *
valid_options(Oid catalog)
{
	StringInfoData buf;

	initStringInfo(&buf);
	for (size_t i = 0; i < lengthof(option_specs); i++)
	{
		if (option_specs[i].catalog == catalog)
			appendStringInfo(&buf, "%s%s", buf.len > 0 ? ", " : "",
							 option_specs[i].name);
	}
	return buf.data;
}

static char *
valid_regions(void)
{
	StringInfoData buf;

	initStringInfo(&buf);
	for (size_t i = 0; i < lengthof(region_hosts); i++)
		appendStringInfo(&buf, "%s%s", i > 0 ? ", " : "",
						 region_hosts[i].region);
	return buf.data;
}

static const char *
region_host(const char *region)
{
	for (size_t i = 0; i < lengthof(region_hosts); i++)
	{
		if (strcmp(region_hosts[i].region, region) == 0)
			return region_hosts[i].host;
	}
	return NULL;
}

/*
 * A host name or address and an optional port; nothing that could end the
 * host part of a URL.
 */
static bool
valid_host(const char *value)
{
	size_t		hostlen;
	const char *port;

	if (value[0] == '[')
	{
		char		address[INET6_ADDRSTRLEN];
		struct in6_addr binary;

		hostlen = strcspn(value, "]");
		if (value[hostlen] != ']' || hostlen > sizeof(address))
			return false;
		strlcpy(address, value + 1, hostlen);
		if (inet_pton(AF_INET6, address, &binary) != 1)
			return false;
		hostlen++;
	}
	else
	{
		hostlen = strspn(value, "abcdefghijklmnopqrstuvwxyz"
						 "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_");
		if (hostlen == 0 || hostlen > 253 || value[0] == '.' || value[0] == '-')
			return false;
	}
	port = value + hostlen;
	if (*port == '\0')
		return true;
	/* without leading zeros, which libcurl would drop */
	if (*port != ':' || strspn(port + 1, "0123456789") != strlen(port + 1) ||
		port[1] == '\0' || port[1] == '0' || strlen(port + 1) > 5)
		return false;
	return atoi(port + 1) <= 65535;
}

/*
 * What a UserSig can be made for, and not just blanks.  The API takes it in
 * UTF-8; raises an error if that has no such characters.
 */
static bool
valid_identifier(const char *value)
{
	const char *utf8 = pg_server_to_any(value, (int) strlen(value), PG_UTF8);

	for (const char *s = utf8; *s != '\0'; s++)
	{
		if ((unsigned char) *s < 0x20)
			return false;
	}
	return strlen(utf8) <= USERSIG_MAX_IDENTIFIER &&
		strspn(utf8, " ") < strlen(utf8);
}

static bool
parse_integer(const char *value, int64 min, int64 max, int64 *result)
{
	char	   *end;
	long long	parsed;

	errno = 0;
	parsed = strtoll(value, &end, 10);
	if (errno != 0 || end == value || *end != '\0' ||
		strspn(value, "-0123456789") != strlen(value) ||
		parsed < min || parsed > max)
		return false;
	*result = parsed;
	return true;
}

static bool
parse_rate(const char *value, double *result)
{
	char	   *end;

	/* no hexadecimal, no "inf", no leading space */
	if (value[0] == '\0' ||
		strspn(value, "0123456789.eE+-") != strlen(value))
		return false;
	errno = 0;
	*result = strtod(value, &end);
	return errno == 0 && *end == '\0' && isfinite(*result) &&
		(*result == 0 || (*result >= MIN_RATE && *result <= MAX_RATE));
}

static bool
parse_duration(const char *value, int unit, int64 min, int64 max, int *result)
{
	return parse_int(value, result, unit, NULL) &&
		*result >= min && *result <= max;
}

/* Is the text a value of the option?  Privileges are not looked at. */
static bool
valid_value(const OptionSpec *spec, const char *value)
{
	int64		integer;
	double		rate;
	int			duration;

	switch (spec->kind)
	{
		case OPTION_TEXT:
			return value[0] != '\0' &&
				(strcmp(spec->name, "identifier") != 0 || valid_identifier(value));
		case OPTION_INTEGER:
			return parse_integer(value, spec->min, spec->max, &integer);
		case OPTION_RATE:
			return parse_rate(value, &rate);
		case OPTION_DURATION_MS:
			return parse_duration(value, GUC_UNIT_MS, spec->min, spec->max, &duration);
		case OPTION_DURATION_S:
			return parse_duration(value, GUC_UNIT_S, spec->min, spec->max, &duration);
		case OPTION_REGION:
			return region_host(value) != NULL;
		case OPTION_HOST:
			return valid_host(value);
		case OPTION_FILE:
			return is_absolute_path(value);
	}
	return false;
}

/*
 * A secret never stands in a message, not even a malformed one: it would
 * reach the log.
 */
static bool
is_secret(const OptionSpec *spec)
{
	return strcmp(spec->name, "secret_key") == 0 ||
		strcmp(spec->name, "usersig") == 0;
}

static void
check_option(const OptionSpec *spec, const char *value)
{
	if (!valid_value(spec, value))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 is_secret(spec)
				 ? errmsg("invalid value for option \"%s\"", spec->name)
				 : errmsg("invalid value for option \"%s\": \"%s\"",
						  spec->name, value),
				 spec->kind == OPTION_REGION
				 ? errhint("The regions are: %s. For another host use the option \"host\".",
						   valid_regions())
				 : errhint("%s", spec->hint)));

	/* as file_fdw: the server would read the file for somebody else */
	if (spec->kind == OPTION_FILE &&
		!has_privs_of_role(GetUserId(), ROLE_PG_READ_SERVER_FILES))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to set option \"%s\"", spec->name),
				 errdetail("Only superusers and roles with privileges of the role %s may set it.",
						   "pg_read_server_files")));
}

static const char *
option_value(List *options, const char *name)
{
	ListCell   *cell;

	foreach(cell, options)
	{
		DefElem    *def = (DefElem *) lfirst(cell);

		if (strcmp(def->defname, name) == 0)
			return defGetString(def);
	}
	return NULL;
}

static void
check_required(List *options, Oid catalog)
{
	for (size_t i = 0; i < lengthof(option_specs); i++)
	{
		if (option_specs[i].catalog == catalog && option_specs[i].required &&
			option_value(options, option_specs[i].name) == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_FDW_DYNAMIC_PARAMETER_VALUE_NEEDED),
					 errmsg("option \"%s\" is required", option_specs[i].name),
					 errhint("%s", option_specs[i].hint)));
	}
}

/* Exactly one of a server's two ways to name its endpoint. */
static void
check_endpoint(List *options)
{
	bool		region = option_value(options, "region") != NULL;
	bool		host = option_value(options, "host") != NULL;

	if (region && host)
		ereport(ERROR,
				(errcode(ERRCODE_FDW_INVALID_OPTION_NAME),
				 errmsg("options \"%s\" and \"%s\" exclude each other",
						"region", "host"),
				 errhint("Keep \"region\" for a data centre of Tencent, \"host\" for any other address.")));
	if (!region && !host)
		ereport(ERROR,
				(errcode(ERRCODE_FDW_DYNAMIC_PARAMETER_VALUE_NEEDED),
				 errmsg("option \"%s\" or \"%s\" is required",
						"region", "host"),
				 errhint("The regions are: %s. An SDKAppID belongs to one of them.",
						 valid_regions())));
}

/* Exactly one of a user mapping's three ways to sign. */
static void
check_credentials(List *options)
{
	static const char *const ways[] = {"secret_key", "secret_key_file", "usersig"};
	int			given = 0;

	for (size_t i = 0; i < lengthof(ways); i++)
	{
		if (option_value(options, ways[i]) != NULL)
			given++;
	}
	if (given != 1)
		ereport(ERROR,
				(errcode(given == 0 ? ERRCODE_FDW_DYNAMIC_PARAMETER_VALUE_NEEDED
						 : ERRCODE_FDW_INVALID_OPTION_NAME),
				 given == 0
				 ? errmsg("option \"%s\", \"%s\" or \"%s\" is required",
						  ways[0], ways[1], ways[2])
				 : errmsg("options \"%s\", \"%s\" and \"%s\" exclude each other",
						  ways[0], ways[1], ways[2]),
				 errhint("Give exactly one of them; \"%s\" keeps the key out of statements and dumps.",
						 "secret_key_file")));
}

/*
 * timpush_fdw_validator(options text[], catalog oid)
 *
 * Called by CREATE and ALTER of wrapper, server and user mapping with all
 * options as they will be.  Raises fdw_invalid_option_name for an option
 * that does not exist or does not go with another one,
 * fdw_dynamic_parameter_value_needed for a missing one,
 * invalid_parameter_value for a malformed one, insufficient_privilege for a
 * file that the role may not name.
 */
Datum
timpush_fdw_validator(PG_FUNCTION_ARGS)
{
	List	   *options = untransformRelOptions(PG_GETARG_DATUM(0));
	Oid			catalog = PG_GETARG_OID(1);
	ListCell   *cell;

	foreach(cell, options)
	{
		DefElem    *def = (DefElem *) lfirst(cell);
		const OptionSpec *spec = find_spec(def->defname, catalog);

		if (spec == NULL)
		{
			char	   *names = valid_options(catalog);

			ereport(ERROR,
					(errcode(ERRCODE_FDW_INVALID_OPTION_NAME),
					 errmsg("invalid option \"%s\"", def->defname),
					 names[0] != '\0'
					 ? errhint("Valid options in this context are: %s.", names)
					 : errhint("There are no valid options in this context.")));
		}
		check_option(spec, defGetString(def));
	}

	if (catalog == ForeignServerRelationId)
	{
		check_required(options, catalog);
		check_endpoint(options);
	}
	else if (catalog == UserMappingRelationId)
	{
		check_required(options, catalog);
		check_credentials(options);
	}
	PG_RETURN_VOID();
}

static void
catalog_changed(Datum arg pg_attribute_unused(),
				int cacheid pg_attribute_unused(),
				uint32 hashvalue pg_attribute_unused())
{
	generation++;
}

uint64
server_generation(void)
{
	if (!callbacks_registered)
	{
		CacheRegisterSyscacheCallback(FOREIGNSERVEROID, catalog_changed, 0);
		CacheRegisterSyscacheCallback(USERMAPPINGOID, catalog_changed, 0);
		CacheRegisterSyscacheCallback(FOREIGNDATAWRAPPEROID, catalog_changed, 0);
		callbacks_registered = true;
	}
	return generation;
}

List *
server_list_all(void)
{
	Oid			wrapper = get_foreign_data_wrapper_oid("timpush", true);
	List	   *result = NIL;
	Relation	rel;
	SysScanDesc scan;
	HeapTuple	tuple;

	if (!OidIsValid(wrapper))
		return NIL;
	rel = table_open(ForeignServerRelationId, AccessShareLock);
	/* by name, so that the order does not depend on where rows lie */
	scan = systable_beginscan(rel, ForeignServerNameIndexId, true, NULL, 0, NULL);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Form_pg_foreign_server form = (Form_pg_foreign_server) GETSTRUCT(tuple);

		if (form->srvfdw == wrapper)
			result = lappend_oid(result, form->oid);
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return result;
}

/* The transaction that wrote a catalog row tells one version from another. */
static uint32
row_version(HeapTuple tuple)
{
	return HeapTupleHeaderGetRawXmin(tuple->t_data);
}

static uint32
server_row_version(Oid serverid)
{
	HeapTuple	tuple = SearchSysCache1(FOREIGNSERVEROID, ObjectIdGetDatum(serverid));
	uint32		version = 0;

	if (HeapTupleIsValid(tuple))
	{
		version = row_version(tuple);
		ReleaseSysCache(tuple);
	}
	return version;
}

/* Only the mapping FOR PUBLIC counts; a role's own one is ignored. */
static List *
public_mapping_options(Oid serverid, bool *found, uint32 *version)
{
	HeapTuple	tuple = SearchSysCache2(USERMAPPINGUSERSERVER,
										ObjectIdGetDatum(InvalidOid),
										ObjectIdGetDatum(serverid));
	List	   *options = NIL;

	*found = HeapTupleIsValid(tuple);
	*version = 0;
	if (*found)
	{
		bool		isnull;
		Datum		datum = SysCacheGetAttr(USERMAPPINGUSERSERVER, tuple,
											Anum_pg_user_mapping_umoptions,
											&isnull);

		if (!isnull)
			options = untransformRelOptions(datum);
		*version = row_version(tuple);
		ReleaseSysCache(tuple);
	}
	return options;
}

/* The validator has seen every value; a default stands in for a missing one. */
static int
integer_option(List *options, const char *name, int fallback)
{
	const char *value = option_value(options, name);
	int64		result;

	if (value == NULL ||
		!parse_integer(value, PG_INT32_MIN, PG_INT32_MAX, &result))
		return fallback;
	return (int) result;
}

static double
rate_option(List *options, const char *name, double fallback)
{
	const char *value = option_value(options, name);
	double		result;

	return value != NULL && parse_rate(value, &result) ? result : fallback;
}

static int
duration_option(List *options, const char *name, int unit, int fallback)
{
	const char *value = option_value(options, name);
	int			result;

	return value != NULL && parse_int(value, &result, unit, NULL) ? result : fallback;
}

/* No copy, so that server_wipe() finds all there is of a secret. */
static char *
text_option(List *options, const char *name)
{
	return unconstify(char *, option_value(options, name));
}

ServerOptions *
server_load(Oid serverid)
{
	ForeignServer *server = GetForeignServer(serverid);
	ServerOptions *result = palloc0(sizeof(ServerOptions));
	const char *value;
	List	   *mapping;
	uint32		mapping_version;

	result->oid = serverid;
	strlcpy(result->name, server->servername, NAMEDATALEN);
	value = option_value(server->options, "sdkappid");
	result->sdkappid = value != NULL ? (uint32) strtoul(value, NULL, 10) : 0;
	value = option_value(server->options, "region");
	if (value != NULL)
		value = region_host(value);
	if (value == NULL)
		value = option_value(server->options, "host");
	result->host = pstrdup(value != NULL ? value : "");
	result->requests_per_second = rate_option(server->options, "requests_per_second", 10);
	result->accounts_per_second = rate_option(server->options, "accounts_per_second", 0);
	result->accounts_per_request = integer_option(server->options, "accounts_per_request", 500);
	result->max_in_flight = integer_option(server->options, "max_in_flight", 32);
	result->connect_timeout = duration_option(server->options, "connect_timeout", GUC_UNIT_MS, 3000);
	result->request_timeout = duration_option(server->options, "request_timeout", GUC_UNIT_MS, 10000);
	result->max_unknown_resends = integer_option(server->options, "max_unknown_resends", 2);
	result->ca_file = text_option(server->options, "ca_file");
	result->proxy = text_option(server->options, "proxy");

	mapping = public_mapping_options(serverid, &result->has_mapping, &mapping_version);
	result->version = (uint64) server_row_version(serverid) << 32 | mapping_version;
	result->identifier = text_option(mapping, "identifier");
	if (result->identifier != NULL)
		result->identifier = pg_server_to_any(result->identifier,
											  (int) strlen(result->identifier), PG_UTF8);
	result->secret_key = text_option(mapping, "secret_key");
	result->secret_key_file = text_option(mapping, "secret_key_file");
	result->usersig = text_option(mapping, "usersig");
	/* who owns the server says who is shown what the key signs */
	result->owner_reads_files = has_privs_of_role(server->owner, ROLE_PG_READ_SERVER_FILES);
	result->usersig_lifetime = duration_option(mapping, "usersig_lifetime", GUC_UNIT_S, 86400);
	return result;
}

void
server_wipe(ServerOptions *server)
{
	if (server->secret_key != NULL)
		explicit_bzero(server->secret_key, strlen(server->secret_key));
	if (server->usersig != NULL)
		explicit_bzero(server->usersig, strlen(server->usersig));
	server->secret_key = server->usersig = NULL;
}

int
server_request_size(const ServerOptions *server)
{
	int			size = server->accounts_per_request;

	/* what is more than a second's worth would be owed for too long */
	if (server->accounts_per_second > 0 && server->accounts_per_second < size)
		size = Max((int) server->accounts_per_second, 1);
	return size;
}

/* The only server of the wrapper, remembered until the catalog changes. */
static Oid
only_server(void)
{
	static Oid	cached = InvalidOid;
	static uint64 cached_generation = 0;
	List	   *servers;

	if (OidIsValid(cached) && cached_generation == server_generation())
		return cached;
	cached_generation = server_generation();
	servers = server_list_all();
	if (servers == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("there is no timpush server in database \"%s\"",
						get_database_name(MyDatabaseId)),
				 errhint("Make one with CREATE SERVER ... FOREIGN DATA WRAPPER timpush.")));
	if (list_length(servers) > 1)
		ereport(ERROR,
				(errcode(ERRCODE_AMBIGUOUS_PARAMETER),
				 errmsg("there are several timpush servers and none is named"),
				 errhint("Name one with the argument \"server\" or the setting timpush.default_server.")));
	cached = linitial_oid(servers);
	list_free(servers);
	return cached;
}

/* GetForeignServer() would read all options, which takes longer. */
static HeapTuple
server_tuple(Oid serverid)
{
	HeapTuple	tuple = SearchSysCache1(FOREIGNSERVEROID, ObjectIdGetDatum(serverid));

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for foreign server %u", serverid);
	return tuple;
}

static Oid
server_wrapper(Oid serverid)
{
	HeapTuple	tuple = server_tuple(serverid);
	Oid			wrapper = ((Form_pg_foreign_server) GETSTRUCT(tuple))->srvfdw;

	ReleaseSysCache(tuple);
	return wrapper;
}

void
server_get_name(Oid serverid, Name name)
{
	HeapTuple	tuple = server_tuple(serverid);

	*name = ((Form_pg_foreign_server) GETSTRUCT(tuple))->srvname;
	ReleaseSysCache(tuple);
}

Oid
server_resolve(const char *name)
{
	Oid			serverid;

	if (name == NULL && timpush_default_server[0] != '\0')
		name = timpush_default_server;
	if (name == NULL)
		return only_server();

	serverid = get_foreign_server_oid(name, true);
	if (!OidIsValid(serverid))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("server \"%s\" does not exist", name),
				 errhint("Make it with CREATE SERVER ... FOREIGN DATA WRAPPER timpush.")));
	if (server_wrapper(serverid) != get_foreign_data_wrapper_oid("timpush", true))
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("server \"%s\" is not a timpush server", name),
				 errhint("Name a server that was made with FOREIGN DATA WRAPPER timpush.")));
	return serverid;
}

void
server_check_usage(Oid serverid, Oid roleid)
{
	if (server_usage_aclcheck(serverid, roleid) != ACLCHECK_OK)
	{
		NameData	name;

		server_get_name(serverid, &name);
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for foreign server %s", NameStr(name)),
				 errhint("Ask its owner for GRANT USAGE ON FOREIGN SERVER %s.",
						 quote_identifier(NameStr(name)))));
	}
}

void
server_keep(Oid serverid)
{
	LockDatabaseObject(ForeignServerRelationId, serverid, 0, AccessShareLock);
	if (!SearchSysCacheExists1(FOREIGNSERVEROID, ObjectIdGetDatum(serverid)))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("server was dropped concurrently")));
}

static char *
read_key_file(const char *path, size_t *len, char **problem)
{
	char	   *key;
	int			fd = OpenTransientFile(path, O_RDONLY | PG_BINARY);
	struct stat st;
	ssize_t		got;

	if (fd < 0)
	{
		*problem = psprintf("could not open key file \"%s\": %m", path);
		return NULL;
	}
	/* a FIFO or a device would block or never end */
	if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode))
	{
		CloseTransientFile(fd);
		*problem = psprintf("key file \"%s\" is not a regular file", path);
		return NULL;
	}
	key = palloc(MAX_KEY_FILE_SIZE + 1);
	got = read(fd, key, MAX_KEY_FILE_SIZE + 1);
	CloseTransientFile(fd);
	/* an editor's line end is no part of the key */
	while (got > 0 && isspace((unsigned char) key[got - 1]) && got <= MAX_KEY_FILE_SIZE)
		got--;
	if (got <= 0 || got > MAX_KEY_FILE_SIZE)
	{
		*problem = got < 0 ? psprintf("could not read key file \"%s\": %m", path) :
			psprintf(got == 0 ? "key file \"%s\" is empty" : "key file \"%s\" is too large", path);
		server_free_key(key, MAX_KEY_FILE_SIZE + 1);
		return NULL;
	}
	*len = got;
	return key;
}

char *
server_read_key(const ServerOptions *server, size_t *len, char **problem)
{
	if (!server->has_mapping)
	{
		*problem = psprintf("server \"%s\" has no user mapping for PUBLIC", server->name);
		return NULL;
	}
	if (server->secret_key != NULL)
	{
		*len = strlen(server->secret_key);
		return pstrdup(server->secret_key);
	}
	if (server->secret_key_file != NULL && !server->owner_reads_files)
	{
		*problem = psprintf("the owner of server \"%s\" lacks the privileges of role pg_read_server_files, which a key file takes",
							server->name);
		return NULL;
	}
	if (server->secret_key_file != NULL)
		return read_key_file(server->secret_key_file, len, problem);
	*problem = psprintf("the user mapping of server \"%s\" holds no key", server->name);
	return NULL;
}

void
server_free_key(char *key, size_t len)
{
	explicit_bzero(key, len);
	pfree(key);
}
