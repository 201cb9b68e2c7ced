/*-------------------------------------------------------------------------
 *
 * fuzz_options.c
 *	  Fuzz target: options of servers and of user mappings.
 *
 * Input: a first field that tells the kind of object and of role, then fields
 * "name=value".  What CREATE takes must be what server_load() gives, within
 * the ranges of server.h, and good for the URL of a call.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <curl/curl.h>
#include <math.h>

#include "access/reloptions.h"
#include "access/xact.h"
#include "catalog/pg_foreign_data_wrapper.h"
#include "catalog/pg_foreign_server.h"
#include "catalog/pg_foreign_table.h"
#include "catalog/pg_user_mapping.h"
#include "commands/defrem.h"
#include "foreign/foreign.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"

#include "fuzz.h"
#include "request.h"
#include "server.h"
#include "usersig.h"

/* Of setup.sql: a server without a mapping, and the role that owns it. */
#define BASE_SERVER		"base"
#define PLAIN_ROLE		"fuzz_app"

/* No input has it by chance, and none is told. */
#define SECRET			"s3CrEt-7f1e9b04"

extern Datum timpush_fdw_validator(PG_FUNCTION_ARGS);

static const char *
given(List *options, const char *name)
{
	ListCell   *cell;

	foreach(cell, options)
	{
		DefElem    *option = (DefElem *) lfirst(cell);

		if (strcmp(option->defname, name) == 0)
			return strVal(option->arg);
	}
	return NULL;
}

/* Secrets are made known by a word in them; an input that has it is none. */
static List *
read_options(FuzzInput *input)
{
	List	   *options = NIL;

	while (input->left > 0)
	{
		char	   *name = fuzz_field(input);
		char	   *value = strchr(name, '=');

		if (strstr(name, SECRET) != NULL)
			continue;
		if (value == NULL)
			value = "";
		else
			*value++ = '\0';
		if (value[0] != '\0' &&
			(strcmp(name, "secret_key") == 0 || strcmp(name, "usersig") == 0))
			value = psprintf("%s%s", SECRET, value);
		options = lappend(options, makeDefElem(name, (Node *) makeString(value), -1));
	}
	return options;
}

static void
same_text(const char *loaded, const char *given)
{
	if ((loaded == NULL) != (given == NULL) ||
		(loaded != NULL && strcmp(loaded, given) != 0))
		fuzz_finding("\"%s\" was given, \"%s\" is loaded",
					 given == NULL ? "(null)" : given,
					 loaded == NULL ? "(null)" : loaded);
}

static char *
url_part(CURLU *url, CURLUPart part, unsigned flags)
{
	char	   *value = NULL;
	char	   *result;

	if (curl_url_get(url, part, &value, flags) != CURLUE_OK)
		return NULL;
	result = pstrdup(value);
	curl_free(value);
	return result;
}

/* The value of a parameter of the URL, with its escapes undone. */
static char *
query_value(const char *query, const char *name)
{
	const char *start = strstr(query, name);
	char	   *value;
	char	   *result;
	int			len;

	if (start == NULL)
		return NULL;
	start += strlen(name);
	value = curl_easy_unescape(NULL, start, (int) strcspn(start, "&"), &len);
	result = pnstrdup(value, len);
	curl_free(value);
	return result;
}

static void
check_url_parts(CURLU *url, const ServerOptions *server, const char *usersig)
{
	char	   *host = url_part(url, CURLUPART_HOST, 0);
	char	   *port = url_part(url, CURLUPART_PORT, 0);
	char	   *query = url_part(url, CURLUPART_QUERY, 0);

	if (port != NULL)
		host = psprintf("%s:%s", host, port);
	/* libcurl writes addresses its own way */
	if (server->host[0] != '[' && strspn(server->host, "0123456789.xXabcdefABCDEF:") != strlen(server->host) &&
		pg_strcasecmp(host, server->host) != 0)
		fuzz_finding("host \"%s\" becomes \"%s\"", server->host, host);
	same_text(url_part(url, CURLUPART_SCHEME, 0), "https");
	same_text(url_part(url, CURLUPART_PATH, 0), "/v4/timpush/batch");
	same_text(url_part(url, CURLUPART_USER, 0), NULL);
	same_text(url_part(url, CURLUPART_PASSWORD, 0), NULL);
	same_text(url_part(url, CURLUPART_FRAGMENT, 0), NULL);
	same_text(query_value(query, "sdkappid="), psprintf("%u", server->sdkappid));
	same_text(query_value(query, "&identifier="), server->identifier);
	fuzz_check(pg_encoding_verifymbstr(PG_UTF8, server->identifier, (int) strlen(server->identifier)) ==
			   (int) strlen(server->identifier));
	same_text(query_value(query, "&usersig="), usersig);
}

/* libcurl has to find in the URL what we put into it. */
static void
check_url(const ServerOptions *server, const char *usersig)
{
	char	   *text = request_url(server, usersig, 1);
	CURLU	   *url = curl_url();
	CURLUcode	code = curl_url_set(url, CURLUPART_URL, text, CURLU_NON_SUPPORT_SCHEME);

	if (code != CURLUE_OK)
		fuzz_finding("URL \"%s\": %s", text, curl_url_strerror(code));
	check_url_parts(url, server, usersig);
	curl_url_cleanup(url);
}

static void
check_server_ranges(const ServerOptions *server)
{
	fuzz_check(server->sdkappid >= 1);
	fuzz_check(server->host[0] != '\0');
	fuzz_check(isfinite(server->requests_per_second) && isfinite(server->accounts_per_second));
	fuzz_check(server->requests_per_second >= 0 && server->requests_per_second <= 1e6);
	fuzz_check(server->accounts_per_second >= 0 && server->accounts_per_second <= 1e6);
	fuzz_check(server->accounts_per_request >= 1 && server->accounts_per_request <= 500);
	fuzz_check(server->max_in_flight >= 1 && server->max_in_flight <= 1000);
	fuzz_check(server->connect_timeout >= 1 && server->connect_timeout <= 3600000);
	fuzz_check(server->request_timeout > 3000 && server->request_timeout <= 3600000);
	fuzz_check(server->max_unknown_resends >= -1 && server->max_unknown_resends <= 1000);
}

static void
same_number(const char *text, double loaded, double fallback)
{
	double		wanted = text == NULL ? fallback : strtod(text, NULL);

	if (loaded != wanted)
		fuzz_finding("\"%s\" was given, %g is loaded", text == NULL ? "(null)" : text, loaded);
}

static void
check_server(List *options, bool plain_role)
{
	ServerOptions *server = server_load(GetForeignServerByName("fuzz", false)->serverid);

	check_server_ranges(server);
	same_number(given(options, "sdkappid"), server->sdkappid, 0);
	same_number(given(options, "requests_per_second"), server->requests_per_second, 10);
	same_number(given(options, "accounts_per_second"), server->accounts_per_second, 0);
	same_number(given(options, "accounts_per_request"), server->accounts_per_request, 500);
	same_number(given(options, "max_in_flight"), server->max_in_flight, 32);
	same_number(given(options, "max_unknown_resends"), server->max_unknown_resends, 2);
	same_text(server->ca_file, given(options, "ca_file"));
	same_text(server->proxy, given(options, "proxy"));
	fuzz_check((given(options, "region") == NULL) != (given(options, "host") == NULL));
	if (given(options, "host") != NULL)
		same_text(server->host, given(options, "host"));
	fuzz_check(!plain_role || server->ca_file == NULL);
	fuzz_check(!server->has_mapping);

	server->identifier = "administrator";
	check_url(server, "eJw-*_");
}

static void
check_mapping(List *options, bool plain_role)
{
	ServerOptions *server = server_load(GetForeignServerByName(BASE_SERVER, false)->serverid);
	char		usersig[USERSIG_MAX_LEN];

	fuzz_check(server->has_mapping);
	same_text(pg_any_to_server(server->identifier, (int) strlen(server->identifier), PG_UTF8),
			  given(options, "identifier"));
	same_text(server->secret_key, given(options, "secret_key"));
	same_text(server->secret_key_file, given(options, "secret_key_file"));
	same_text(server->usersig, given(options, "usersig"));
	fuzz_check((server->secret_key != NULL) + (server->secret_key_file != NULL) +
			   (server->usersig != NULL) == 1);
	fuzz_check(server->usersig_lifetime >= 60 && server->usersig_lifetime <= 315360000);
	fuzz_check(!plain_role || server->secret_key_file == NULL);

	fuzz_check(usersig_make(usersig, "key", 3, server->identifier, server->sdkappid,
							1700000000, server->usersig_lifetime));
	check_url(server, usersig);
	if (server->usersig != NULL)
		check_url(server, server->usersig);
}

/* What the wrapper, foreign tables and whatever else have for options: none. */
static void
validate_other(List *options, Oid catalog)
{
	Datum		array = PointerGetDatum(construct_empty_array(TEXTOID));
	Datum		wanted = transformRelOptions((Datum) 0, options, NULL, NULL, false, false);

	(void) DirectFunctionCall2(timpush_fdw_validator,
							   wanted == (Datum) 0 ? array : wanted,
							   ObjectIdGetDatum(catalog));
	fuzz_check(options == NIL);
}

static void
create_server(List *options)
{
	CreateForeignServerStmt *stmt = makeNode(CreateForeignServerStmt);

	stmt->servername = "fuzz";
	stmt->fdwname = "timpush";
	stmt->options = options;
	(void) CreateForeignServer(stmt);
	CommandCounterIncrement();
}

static void
create_mapping(List *options)
{
	CreateUserMappingStmt *stmt = makeNode(CreateUserMappingStmt);

	stmt->user = makeNode(RoleSpec);
	stmt->user->roletype = ROLESPEC_PUBLIC;
	stmt->servername = BASE_SERVER;
	stmt->options = options;
	(void) CreateUserMapping(stmt);
	CommandCounterIncrement();
}

void
fuzz_options(FuzzInput *input)
{
	char	   *kind = fuzz_field(input);
	List	   *options = read_options(input);
	bool		plain_role = strchr(kind, 'p') != NULL;
	Oid			role;
	int			context;

	GetUserIdAndSecContext(&role, &context);
	if (plain_role)
		SetUserIdAndSecContext(get_role_oid(PLAIN_ROLE, false), context);
	fuzz_forbid(SECRET);
	switch (kind[0])
	{
		case 'm':
			create_mapping(options);
			check_mapping(options, plain_role);
			break;
		case 'w':
			validate_other(options, ForeignDataWrapperRelationId);
			break;
		case 't':
			validate_other(options, ForeignTableRelationId);
			break;
		default:
			create_server(options);
			check_server(options, plain_role);
			break;
	}
	SetUserIdAndSecContext(role, context);
}
