/*-------------------------------------------------------------------------
 *
 * request.c
 *	  A call of the API: its URL and its body.
 *
 * The body is made from the journal's columns alone and always the same way,
 * so that a request in doubt can go again byte for byte.
 *
 * Crash story: no state.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/json.h"

#include "push.h"
#include "request.h"

static void
push_key(JsonbParseState **state, const char *key, int len)
{
	JsonbValue	value;

	value.type = jbvString;
	value.val.string.val = unconstify(char *, key);
	value.val.string.len = len;
	(void) pushJsonbValue(state, WJB_KEY, &value);
}

static void
push_string(JsonbParseState **state, const char *key, const char *string, int len)
{
	JsonbValue	value;

	push_key(state, key, (int) strlen(key));
	value.type = jbvString;
	value.val.string.val = unconstify(char *, string);
	value.val.string.len = len;
	(void) pushJsonbValue(state, WJB_VALUE, &value);
}

static void
push_text(JsonbParseState **state, const char *key, text *value)
{
	if (value != NULL)
		push_string(state, key, VARDATA_ANY(value), VARSIZE_ANY_EXHDR(value));
}

static bool
key_is(const JsonbValue *key, const char *name)
{
	return key->val.string.len == (int) strlen(name) &&
		memcmp(key->val.string.val, name, key->val.string.len) == 0;
}

/*
 * Ext goes as a string that holds JSON; some vendors fail otherwise (77715).
 * Rows that came by replication were not checked here, so it may be anything.
 */
static void
push_ext(JsonbParseState **state, JsonbValue *ext)
{
	StringInfoData text;

	if (ext->type != jbvBinary)
	{
		push_key(state, "Ext", strlen("Ext"));
		(void) pushJsonbValue(state, WJB_VALUE, ext);
		return;
	}
	initStringInfo(&text);
	(void) JsonbToCString(&text, ext->val.binary.data, ext->val.binary.len);
	push_string(state, "Ext", text.data, text.len);
}

/* OfflinePushInfo: what "extra" has of it, and the title and text. */
static void
push_info(JsonbParseState **state, JsonbContainer *extra, text *title, text *descr)
{
	push_key(state, "OfflinePushInfo", strlen("OfflinePushInfo"));
	(void) pushJsonbValue(state, WJB_BEGIN_OBJECT, NULL);
	if (extra != NULL)
	{
		JsonbIterator *it = JsonbIteratorInit(extra);
		JsonbValue	key;
		JsonbValue	value;
		JsonbIteratorToken token = JsonbIteratorNext(&it, &key, true);

		while ((token = JsonbIteratorNext(&it, &key, true)) == WJB_KEY)
		{
			(void) JsonbIteratorNext(&it, &value, true);
			if (key_is(&key, "Ext"))
			{
				push_ext(state, &value);
				continue;
			}
			push_key(state, key.val.string.val, key.val.string.len);
			(void) pushJsonbValue(state, WJB_VALUE, &value);
		}
	}
	push_text(state, "Title", title);
	push_text(state, "Desc", descr);
	(void) pushJsonbValue(state, WJB_END_OBJECT, NULL);
}

/* The other fields of "extra"; its OfflinePushInfo is returned, or NULL. */
static JsonbContainer *
push_extra(JsonbParseState **state, Jsonb *extra)
{
	JsonbContainer *info = NULL;
	JsonbIterator *it;
	JsonbValue	key;
	JsonbValue	value;

	if (extra == NULL)
		return NULL;
	it = JsonbIteratorInit(&extra->root);
	(void) JsonbIteratorNext(&it, &key, true);
	while (JsonbIteratorNext(&it, &key, true) == WJB_KEY)
	{
		(void) JsonbIteratorNext(&it, &value, true);
		if (key_is(&key, "OfflinePushInfo") && value.type == jbvBinary &&
			JsonContainerIsObject(value.val.binary.data))
		{
			info = value.val.binary.data;
			continue;
		}
		push_key(state, key.val.string.val, key.val.string.len);
		(void) pushJsonbValue(state, WJB_VALUE, &value);
	}
	return info;
}

Jsonb *
request_content(text *from, text *title, text *descr, text *data_id,
				Jsonb *extra)
{
	JsonbParseState *state = NULL;
	JsonbContainer *info;

	(void) pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	info = push_extra(&state, extra);
	push_text(&state, "From_Account", from);
	push_text(&state, "DataId", data_id);
	push_info(&state, info, title, descr);
	return JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_OBJECT, NULL));
}

void
request_body(StringInfo body, Jsonb *content, char **accounts, int naccounts,
			 uint32 msg_random)
{
	int			start = body->len;
	char	   *converted;
	StringInfoData rest;

	appendStringInfo(body, "{\"MsgRandom\": %u, \"To_Account\": [", msg_random);
	for (int i = 0; i < naccounts; i++)
	{
		if (i > 0)
			appendStringInfoString(body, ", ");
		escape_json(body, accounts[i]);
	}
	initStringInfo(&rest);
	(void) JsonbToCString(&rest, &content->root, VARSIZE(content));
	/* the content's own opening brace makes way */
	appendStringInfo(body, "], %s", rest.data + 1);
	pfree(rest.data);

	if (GetDatabaseEncoding() == PG_UTF8)
		return;
	converted = pg_server_to_any(body->data + start, body->len - start, PG_UTF8);
	if (converted != body->data + start)
	{
		body->len = start;
		appendStringInfoString(body, converted);
		pfree(converted);
	}
}

static void
append_url_encoded(StringInfo url, const char *value)
{
	for (const unsigned char *p = (const unsigned char *) value; *p; p++)
	{
		/* the unreserved set, and the two more that a UserSig may have */
		if ((*p >= 'a' && *p <= 'z') || (*p >= 'A' && *p <= 'Z') ||
			(*p >= '0' && *p <= '9') || strchr("-._~*", *p) != NULL)
			appendStringInfoChar(url, (char) *p);
		else
			appendStringInfo(url, "%%%02X", *p);
	}
}

char *
request_url(const ServerOptions *server, const char *usersig, uint32 random)
{
	StringInfoData url;

	initStringInfo(&url);
	appendStringInfo(&url, "https://%s/v4/timpush/batch?sdkappid=%u&identifier=",
					 server->host, server->sdkappid);
	append_url_encoded(&url, server->identifier);
	appendStringInfoString(&url, "&usersig=");
	append_url_encoded(&url, usersig);
	appendStringInfo(&url, "&random=%u&contenttype=json", random);
	return url.data;
}

bool
request_all_expired(const Request *request, TimestampTz when)
{
	for (int i = 0; i < request->nmembers; i++)
	{
		if (request->members[i].expires_at > when)
			return false;
	}
	return true;
}

bool
request_any_expired(const Request *request, TimestampTz when)
{
	for (int i = 0; i < request->nmembers; i++)
	{
		if (request->members[i].expires_at <= when)
			return true;
	}
	return false;
}
