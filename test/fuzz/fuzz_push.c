/*-------------------------------------------------------------------------
 *
 * fuzz_push.c
 *	  Fuzz target: the checks of a push, and the body that comes of it.
 *
 * Input, in fields: letters that say which values are NULL and a digit, the
 * priority; then from, to (an array literal), title, descr, data_id,
 * dedup_key, extra (JSON).
 *
 * A push that is accepted can be sent: its content and body can be made, the
 * body is JSON in UTF-8 of a bounded size that has each reserved field once,
 * with our value, and all of "extra" besides; it comes out the same again,
 * byte for byte; and the push can be made anew of it, as timpush_retry() does.  The body is read by a parser's events, not as jsonb,
 * which keeps one of two equal keys and hides that there were two.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/jsonapi.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"

#include "catalog/pg_type.h"
#include "compat.h"
#include "fuzz.h"
#include "push.h"
#include "request.h"

/*
 * Most bytes of a body that is not accounts.  The content may have 64 kB; what
 * is one byte in jsonb is 7 in the text of a text ("\\u0001").
 */
#define MAX_BODY		(8 * PUSH_MAX_CONTENT)

#define MSG_RANDOM		4294967295U
#define MSG_RANDOM_TEXT "4294967295"

#define MAX_FIELDS		2048

/* What the body's events tell: the fields of the two levels that matter. */
typedef struct Level
{
	int			nfields;
	char	   *names[MAX_FIELDS];
	char	   *values[MAX_FIELDS]; /* of scalars, else NULL */
} Level;

typedef struct Body
{
	int			depth;
	bool		in_info;
	bool		in_accounts;
	Level		top;
	Level		info;
	int			naccounts;
	char	  **accounts;
} Body;

/*
 * ------------------------------------------------------------------------
 * Reading the body
 * ------------------------------------------------------------------------
 */

static void
begin_field(Level *level, char *name)
{
	for (int i = 0; i < level->nfields; i++)
	{
		if (strcmp(level->names[i], name) == 0)
			fuzz_finding("the body has \"%s\" twice", name);
	}
	fuzz_check(level->nfields < MAX_FIELDS);
	level->names[level->nfields] = name;
	level->values[level->nfields++] = NULL;
}

static JSON_ACTION
on_field(void *state, char *name, bool isnull pg_attribute_unused())
{
	Body	   *body = state;

	if (body->depth == 1)
	{
		begin_field(&body->top, name);
		body->in_info = strcmp(name, "OfflinePushInfo") == 0;
		body->in_accounts = strcmp(name, "To_Account") == 0;
	}
	else if (body->depth == 2 && body->in_info)
		begin_field(&body->info, name);
	JSON_ACTION_DONE;
}

static JSON_ACTION
on_scalar(void *state, char *token, JsonTokenType type pg_attribute_unused())
{
	Body	   *body = state;

	if (body->depth == 1)
		body->top.values[body->top.nfields - 1] = token;
	else if (body->depth == 2 && body->in_accounts)
		body->accounts[body->naccounts++] = token;
	else if (body->depth == 2 && body->in_info)
		body->info.values[body->info.nfields - 1] = token;
	JSON_ACTION_DONE;
}

static JSON_ACTION
on_begin(void *state)
{
	((Body *) state)->depth++;
	JSON_ACTION_DONE;
}

static JSON_ACTION
on_end(void *state)
{
	((Body *) state)->depth--;
	JSON_ACTION_DONE;
}

static Body *
read_body(const StringInfo bytes, int max_accounts)
{
	Body	   *body = palloc0(sizeof(Body));
	JsonSemAction actions = {
		.semstate = body,
		.object_start = on_begin,
		.object_end = on_end,
		.array_start = on_begin,
		.array_end = on_end,
		.object_field_start = on_field,
		.scalar = on_scalar
	};
	JsonLexContext *lex = json_lex_begin(bytes->data, bytes->len);
	JsonParseErrorType result;

	body->accounts = palloc(sizeof(char *) * (max_accounts + 1));
	result = pg_parse_json(lex, &actions);
	if (result != JSON_SUCCESS)
		fuzz_finding("the body is no JSON: %s", bytes->data);
	return body;
}

static bool
has_field(const Level *level, const char *name)
{
	for (int i = 0; i < level->nfields; i++)
	{
		if (strcmp(level->names[i], name) == 0)
			return true;
	}
	return false;
}

static const char *
field_value(const Level *level, const char *name)
{
	for (int i = 0; i < level->nfields; i++)
	{
		if (strcmp(level->names[i], name) == 0)
			return level->values[i];
	}
	return NULL;
}

/*
 * ------------------------------------------------------------------------
 * What has to be in it
 * ------------------------------------------------------------------------
 */

static char *
to_utf8(const char *string, int len)
{
	char	   *copy = pnstrdup(string, len);

	return pg_server_to_any(copy, len, PG_UTF8);
}

/* The field is there if there is a value, once, and has it. */
static void
check_field(const Level *level, const char *name, text *wanted)
{
	const char *value = field_value(level, name);

	if (has_field(level, name) != (wanted != NULL))
		fuzz_finding("the body has %s \"%s\"", wanted == NULL ? "a" : "no", name);
	if (wanted != NULL &&
		(value == NULL ||
		 strcmp(value, to_utf8(VARDATA_ANY(wanted), VARSIZE_ANY_EXHDR(wanted))) != 0))
		fuzz_finding("\"%s\" of the body is not what was given", name);
}

static void
check_fields(const Body *body, const PushFields *push, char **accounts, int n)
{
	check_field(&body->top, "MsgRandom", cstring_to_text(MSG_RANDOM_TEXT));
	check_field(&body->top, "From_Account", push->from);
	check_field(&body->top, "DataId", push->data_id);
	check_field(&body->info, "Title", push->title);
	check_field(&body->info, "Desc", push->descr);
	fuzz_check(has_field(&body->top, "To_Account"));
	fuzz_check(has_field(&body->top, "OfflinePushInfo"));
	fuzz_check(body->naccounts == n);
	for (int i = 0; i < n; i++)
		fuzz_check(strcmp(body->accounts[i], to_utf8(accounts[i], (int) strlen(accounts[i]))) == 0);
	fuzz_check(!has_field(&body->info, "Ext") || field_value(&body->info, "Ext") != NULL);
}

static Jsonb *
jsonb_of(const char *text)
{
	return DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(text)));
}

static char *
text_of(JsonbContainer *container, const char *key, int len)
{
	JsonbValue	value;
	Jsonb	   *jsonb;

	if (getKeyJsonValueFromContainer(container, key, len, &value) == NULL)
		return NULL;
	jsonb = JsonbValueToJsonb(&value);
	return JsonbToCString(NULL, &jsonb->root, VARSIZE(jsonb));
}

/* An object given for Ext has become its text, and a text has stayed one. */
static void
check_ext(const char *ext, JsonbContainer *given)
{
	JsonbValue	value;

	(void) getKeyJsonValueFromContainer(given, "Ext", 3, &value);
	if (value.type == jbvString)
		fuzz_check(strlen(ext) == (size_t) value.val.string.len &&
				   memcmp(ext, value.val.string.val, value.val.string.len) == 0);
	else
		fuzz_check(compareJsonbContainers(&jsonb_of(ext)->root, value.val.binary.data) == 0);
}

/* All fields of one object stand in the other one. */
static void
check_contained(JsonbContainer *given, JsonbContainer *made, const char *but)
{
	JsonbIterator *it = JsonbIteratorInit(given);
	JsonbValue	key;
	JsonbValue	value;

	(void) JsonbIteratorNext(&it, &key, true);
	while (JsonbIteratorNext(&it, &key, true) == WJB_KEY)
	{
		const char *name = key.val.string.val;
		int			len = key.val.string.len;
		char	   *found = text_of(made, name, len);

		(void) JsonbIteratorNext(&it, &value, true);
		if (len == (int) strlen(but) && memcmp(name, but, len) == 0)
			continue;
		if (found == NULL || strcmp(found, text_of(given, name, len)) != 0)
			fuzz_finding("\"%.*s\" of \"extra\" is not what the body has", len, name);
	}
}

static void
check_extra_in(const StringInfo bytes, const Body *body, Jsonb *extra)
{
	Jsonb	   *made = jsonb_of(bytes->data);
	JsonbValue	given_info;
	JsonbValue	made_info;

	check_contained(&extra->root, &made->root, "OfflinePushInfo");
	(void) getKeyJsonValueFromContainer(&made->root, "OfflinePushInfo", 15, &made_info);
	if (getKeyJsonValueFromContainer(&extra->root, "OfflinePushInfo", 15, &given_info) == NULL)
		return;
	check_contained(given_info.val.binary.data, made_info.val.binary.data, "Ext");
	if (field_value(&body->info, "Ext") != NULL)
		check_ext(field_value(&body->info, "Ext"), given_info.val.binary.data);
}

static void
make_body(StringInfo body, Jsonb *content, char **accounts, int n)
{
	initStringInfo(body);
	request_body(body, content, accounts, n, MSG_RANDOM);
}

static void
check_same(const StringInfo body, Jsonb *content, char **accounts, int n, const char *when)
{
	StringInfoData again;

	make_body(&again, content, accounts, n);
	if (again.len != body->len || memcmp(again.data, body->data, body->len) != 0)
		fuzz_finding("the body is another one %s: %s", when, again.data);
}

static Jsonb *
content_of(const PushFields *push)
{
	return request_content(push->from, push->title, push->descr, push->data_id, push->extra);
}

static void
check_push(const PushFields *push)
{
	Datum	   *elements;
	int			n;
	char	  **accounts;
	size_t		account_bytes = 0;
	Jsonb	   *content = content_of(push);
	StringInfoData bytes;
	Body	   *body;

	deconstruct_array(push->to, TEXTOID, -1, false, TYPALIGN_INT, &elements, NULL, &n);
	accounts = palloc(sizeof(char *) * n);
	for (int i = 0; i < n; i++)
	{
		accounts[i] = TextDatumGetCString(elements[i]);
		account_bytes += strlen(accounts[i]);
	}
	make_body(&bytes, content, accounts, n);
	if ((size_t) bytes.len > MAX_BODY + 8 * account_bytes)
		fuzz_finding("a body of %d bytes", bytes.len);
	fuzz_check(pg_encoding_verifymbstr(PG_UTF8, bytes.data, bytes.len) == bytes.len);

	body = read_body(&bytes, n);
	check_fields(body, push, accounts, n);
	check_same(&bytes, content, accounts, n, "the next time");
	check_same(&bytes, content_of(push), accounts, n, "from the same push");
	check_same(&bytes, jsonb_of(JsonbToCString(NULL, &content->root, VARSIZE(content))),
			   accounts, n, "after a dump");
	/* back from UTF-8 some characters are others in some encodings */
	if (push->extra != NULL && GetDatabaseEncoding() == PG_UTF8)
		check_extra_in(&bytes, body, push->extra);
}

static Jsonb *
without(Jsonb *jsonb, const char *key)
{
	return DatumGetJsonbP(DirectFunctionCall2(jsonb_delete, JsonbPGetDatum(jsonb),
											  CStringGetTextDatum(key)));
}

static Jsonb *
without_in_info(Jsonb *jsonb, const char *key)
{
	Datum		path[2] = {CStringGetTextDatum("OfflinePushInfo"), CStringGetTextDatum(key)};

	return DatumGetJsonbP(DirectFunctionCall2(jsonb_delete_path, JsonbPGetDatum(jsonb),
											  PointerGetDatum(construct_array(path, 2, TEXTOID, -1, false,
																			  TYPALIGN_INT))));
}

/* What was taken once is taken again, in the form that the journal has it. */
static void
check_retry(const PushFields *push)
{
	PushFields	again = *push;
	Jsonb	   *content = content_of(push);
	Jsonb	   *same;

	again.extra = without_in_info(without_in_info(without(without(content, "From_Account"), "DataId"),
												  "Title"), "Desc");
	if (strcmp(text_of(&again.extra->root, "OfflinePushInfo", 15), "{}") == 0)
		again.extra = without(again.extra, "OfflinePushInfo");
	if (JB_ROOT_COUNT(again.extra) == 0)
		again.extra = NULL;
	PG_TRY();
	{
		push_check(&again);
	}
	PG_CATCH();
	{
		fuzz_finding("a push cannot be retried");
	}
	PG_END_TRY();
	same = content_of(&again);
	fuzz_check(VARSIZE(same) == VARSIZE(content) && memcmp(same, content, VARSIZE(same)) == 0);
}

static text *
text_field(FuzzInput *input, const char *nulls, char letter)
{
	char	   *value = fuzz_long_field(input);

	return strchr(nulls, letter) != NULL ? NULL : cstring_to_text(value);
}

static ArrayType *
array_field(FuzzInput *input, const char *nulls)
{
	char	   *value = fuzz_long_field(input);

	if (strchr(nulls, 'a') != NULL)
		return NULL;
	return DatumGetArrayTypeP(OidInputFunctionCall(F_ARRAY_IN, value, TEXTOID, -1));
}

void
fuzz_push(FuzzInput *input)
{
	char	   *nulls = fuzz_field(input);
	PushFields	push = {.from_name = "from",.to_name = "to"};
	const char *digit = strpbrk(nulls, "0123456789");

	push.priority = digit == NULL ? 4 : atoi(digit);
	push.from = text_field(input, nulls, 'f');
	push.to = array_field(input, nulls);
	push.title = text_field(input, nulls, 't');
	push.descr = text_field(input, nulls, 'd');
	push.data_id = text_field(input, nulls, 'i');
	push.dedup_key = text_field(input, nulls, 'k');
	if (strchr(nulls, 'x') == NULL)
		push.extra = jsonb_of(fuzz_long_field(input));

	/* a row that came by replication was not checked here; no harm is due */
	if (strchr(nulls, 'u') != NULL && push.from != NULL && push.extra != NULL)
	{
		(void) content_of(&push);
		return;
	}
	push_check(&push);
	check_push(&push);
	check_retry(&push);
}
