/*-------------------------------------------------------------------------
 *
 * push.c
 *	  Checks of a push: what can only be refused is refused at once, in the
 *	  caller's transaction.
 *
 * Crash story: no state.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"

#include "push.h"

Span
text_span(text *value)
{
	Span		span = {NULL, 0};

	if (value != NULL)
	{
		span.data = VARDATA_ANY(value);
		span.len = VARSIZE_ANY_EXHDR(value);
	}
	return span;
}

static bool
span_blank(Span span)
{
	for (size_t i = 0; i < span.len; i++)
	{
		if (!isspace((unsigned char) span.data[i]))
			return false;
	}
	return true;
}

/*
 * The body is UTF-8.  Where the database's encoding is another one, text
 * that cannot be converted is refused now and not when it is to be sent.
 */
static int
utf8_length(Span span)
{
	char	   *converted;

	if (GetDatabaseEncoding() == PG_UTF8 || span.len == 0)
		return (int) span.len;
	converted = pg_server_to_any(span.data, (int) span.len, PG_UTF8);
	return converted == span.data ? (int) span.len : (int) strlen(converted);
}

static void
check_from(const PushFields *push)
{
	if (push->from == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("\"%s\" must not be null", push->from_name),
				 errhint("Give the UserID or RegistrationID of the sender.")));
	if (span_blank(text_span(push->from)))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"%s\" must not be blank: \"%s\"", push->from_name,
						text_to_cstring(push->from)),
				 errhint("Give the UserID or RegistrationID of the sender.")));
	if (utf8_length(text_span(push->from)) > PUSH_MAX_ACCOUNT)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"%s\" must not be longer than %d bytes",
						push->from_name, PUSH_MAX_ACCOUNT),
				 errhint("Give the UserID or RegistrationID of the sender.")));
}

/* The second of two equal accounts, or -1. */
static int
find_duplicate(const Span *accounts, int n)
{
	uint32		size = 16;
	int		   *slots;
	int			duplicate = -1;

	while (size < (uint32) n * 2)
		size *= 2;
	slots = palloc(sizeof(int) * size);
	memset(slots, -1, sizeof(int) * size);
	for (int i = 0; i < n && duplicate < 0; i++)
	{
		uint32		slot = hash_bytes((const unsigned char *) accounts[i].data,
									  (int) accounts[i].len) & (size - 1);

		while (slots[slot] >= 0)
		{
			const Span *other = &accounts[slots[slot]];

			if (other->len == accounts[i].len &&
				memcmp(other->data, accounts[i].data, other->len) == 0)
			{
				duplicate = i;
				break;
			}
			slot = (slot + 1) & (size - 1);
		}
		slots[slot] = i;
	}
	pfree(slots);
	return duplicate;
}

static void
check_account_values(const PushFields *push, Datum *values, bool *nulls, int n)
{
	Span	   *accounts = palloc(sizeof(Span) * n);
	int			duplicate;

	for (int i = 0; i < n; i++)
	{
		if (nulls != NULL && nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("\"%s\" must not contain null, but element %d is null",
							push->to_name, i + 1),
					 errhint("Leave the account out of the array.")));
		accounts[i] = text_span(DatumGetTextPP(values[i]));
		if (span_blank(accounts[i]))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("\"%s\" must not contain a blank account, but element %d is \"%s\"",
							push->to_name, i + 1, TextDatumGetCString(values[i])),
					 errhint("Leave the account out of the array.")));
		if (utf8_length(accounts[i]) > PUSH_MAX_ACCOUNT)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("\"%s\" must not contain accounts longer than %d bytes, but element %d is",
							push->to_name, PUSH_MAX_ACCOUNT, i + 1),
					 errhint("Give UserIDs or RegistrationIDs.")));
	}
	duplicate = n > 1 ? find_duplicate(accounts, n) : -1;
	if (duplicate >= 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"%s\" contains account \"%s\" more than once",
						push->to_name, TextDatumGetCString(values[duplicate])),
				 errhint("Name each account once, for example with SELECT DISTINCT.")));
	pfree(accounts);
}

static void
check_to(const PushFields *push)
{
	int			n;
	Datum	   *values;
	bool	   *nulls;

	if (push->to == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("\"%s\" must not be null", push->to_name),
				 errhint("Give an array of at least one account.")));
	if (ARR_NDIM(push->to) > 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"%s\" must have one dimension, not %d",
						push->to_name, ARR_NDIM(push->to)),
				 errhint("Give a plain array of accounts.")));
	n = ArrayGetNItems(ARR_NDIM(push->to), ARR_DIMS(push->to));
	if (n == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"%s\" must not be empty", push->to_name),
				 errhint("Give an array of at least one account.")));
	if (n > PUSH_MAX_ACCOUNTS)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("\"%s\" must not have more than %d accounts, but has %d",
						push->to_name, PUSH_MAX_ACCOUNTS, n),
				 errhint("Enqueue several pushes of the same content; they share calls.")));
	deconstruct_array(push->to, TEXTOID, -1, false, TYPALIGN_INT,
					  &values, &nulls, &n);
	check_account_values(push, values, nulls, n);
	pfree(values);
	pfree(nulls);
}

static JsonbValue *
jsonb_field(JsonbContainer *container, const char *name, JsonbValue *res)
{
	return getKeyJsonValueFromContainer(container, name, (int) strlen(name), res);
}

static void
check_reserved(JsonbContainer *container, const char *const *names, int n,
			   const char *where)
{
	for (int i = 0; i < n; i++)
	{
		JsonbValue	value;

		if (jsonb_field(container, names[i], &value) != NULL)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("\"extra\" must not contain \"%s\"%s", names[i], where),
					 errhint("This field is made from the arguments of the push.")));
	}
}

static void
check_encoding(Jsonb *extra)
{
	StringInfoData string;
	Span		span;

	if (GetDatabaseEncoding() == PG_UTF8)
		return;
	initStringInfo(&string);
	(void) JsonbToCString(&string, &extra->root, VARSIZE(extra));
	span.data = string.data;
	span.len = string.len;
	(void) utf8_length(span);
	pfree(string.data);
}

/* Raises for what must not stand in "extra"; tells if it names a template. */
static bool
check_extra(Jsonb *extra)
{
	static const char *const top[] = {"From_Account", "To_Account", "MsgRandom", "DataId"};
	static const char *const inner[] = {"Title", "Desc"};
	JsonbValue	info;
	JsonbValue	field;

	if (extra == NULL)
		return false;
	if (!JB_ROOT_IS_OBJECT(extra))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"extra\" must be a JSON object"),
				 errhint("Give further fields of the request by the API's names, such as {\"OfflinePushInfo\": {\"Ext\": {\"page\": \"order/1\"}}}.")));
	check_encoding(extra);
	check_reserved(&extra->root, top, lengthof(top), "");
	if (jsonb_field(&extra->root, "OfflinePushInfo", &info) == NULL)
		return false;
	if (info.type != jbvBinary || !JsonContainerIsObject(info.val.binary.data))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"OfflinePushInfo\" in \"extra\" must be a JSON object"),
				 errhint("Give its fields by the API's names, such as {\"ApnsInfo\": {\"BadgeMode\": 1}}.")));
	check_reserved(info.val.binary.data, inner, lengthof(inner), " in OfflinePushInfo");
	if (jsonb_field(info.val.binary.data, "Ext", &field) != NULL &&
		field.type != jbvString &&
		!(field.type == jbvBinary && JsonContainerIsObject(field.val.binary.data)))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"Ext\" in \"extra\" must be a JSON object or a string"),
				 errhint("An object is turned into the JSON text that the API wants.")));
	return jsonb_field(info.val.binary.data, "PushTemplateId", &field) != NULL &&
		field.type == jbvString && field.val.string.len > 0;
}

/*
 * Bytes of numbers in the text of "extra", counted up to where they are too
 * many: 1e131071 takes ten bytes as jsonb, and as many as its digits in a body.
 */
static size_t
digits_of(Jsonb *extra)
{
	JsonbIterator *it = JsonbIteratorInit(&extra->root);
	JsonbIteratorToken token;
	JsonbValue	value;
	size_t		digits = 0;

	while (digits <= PUSH_MAX_CONTENT &&
		   (token = JsonbIteratorNext(&it, &value, false)) != WJB_DONE)
	{
		char	   *number;

		if ((token != WJB_ELEM && token != WJB_VALUE) || value.type != jbvNumeric)
			continue;
		number = DatumGetCString(DirectFunctionCall1(numeric_out,
													 NumericGetDatum(value.val.numeric)));
		digits += strlen(number);
		pfree(number);
	}
	return digits;
}

/* Bytes of the text that an object Ext becomes, or 0. */
static size_t
ext_size(Jsonb *extra)
{
	StringInfoData string;
	JsonbValue	info;
	JsonbValue	ext;

	if (!JB_ROOT_IS_OBJECT(extra) ||
		jsonb_field(&extra->root, "OfflinePushInfo", &info) == NULL ||
		info.type != jbvBinary || !JsonContainerIsObject(info.val.binary.data) ||
		jsonb_field(info.val.binary.data, "Ext", &ext) == NULL || ext.type != jbvBinary)
		return 0;
	initStringInfo(&string);
	(void) JsonbToCString(&string, ext.val.binary.data, ext.val.binary.len);
	pfree(string.data);
	return string.len;
}

/* What no service would take must not get into the worker's way either. */
static void
check_size(const PushFields *push)
{
	size_t		size = text_span(push->title).len + text_span(push->descr).len +
	text_span(push->data_id).len;

	if (push->extra != NULL)
		size += VARSIZE_ANY_EXHDR(push->extra) + digits_of(push->extra);
	if (push->extra != NULL && size <= PUSH_MAX_CONTENT)
		size += ext_size(push->extra);
	if (size > PUSH_MAX_CONTENT)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("content of a push must not be larger than %d bytes, but has %zu",
						PUSH_MAX_CONTENT, size),
				 errhint("Shorten \"title\", \"descr\" or \"extra\"; devices show a few hundred characters.")));
}

static void
check_dedup_key(const PushFields *push)
{
	int			len = (int) text_span(push->dedup_key).len;

	if (len > PUSH_MAX_DEDUP_KEY)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"dedup_key\" must not be longer than %d bytes, but has %d",
						PUSH_MAX_DEDUP_KEY, len),
				 errhint("Use a hash of it, such as md5().")));
}

static void
check_texts(const PushFields *push, bool has_template)
{
	Span		data_id = text_span(push->data_id);
	int			len;

	if (text_span(push->title).len == 0 && text_span(push->descr).len == 0 &&
		!has_template)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"title\" and \"descr\" must not both be empty"),
				 errhint("Give one of them, or name a template as PushTemplateId in OfflinePushInfo of \"extra\".")));
	(void) utf8_length(text_span(push->title));
	(void) utf8_length(text_span(push->descr));
	len = utf8_length(data_id);
	if (len > PUSH_MAX_DATA_ID)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"data_id\" must not be longer than %d bytes, but \"%s\" has %d",
						PUSH_MAX_DATA_ID, text_to_cstring(push->data_id), len),
				 errhint("Use a shorter identifier, such as a primary key.")));
}

void
push_check(const PushFields *push)
{
	check_from(push);
	check_to(push);
	check_size(push);
	check_texts(push, check_extra(push->extra));
	check_dedup_key(push);
	if (push->priority < 0 || push->priority > 9)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"priority\" must be from 0 to 9, not %d", push->priority),
				 errhint("Priority 9 leaves first.")));
}
