-- ledger.lua - the record of what was received and what was answered
--
-- One JSON object a line.  Lines reach the file by one write(2) on a descriptor
-- opened with O_APPEND, so they neither interleave, whatever their length and
-- the number of workers, nor wait in a buffer when the answer is on its way.

local ffi = require "ffi"
local cjson = require "cjson"

ffi.cdef [[
int open(const char *path, int flags, ...);
ssize_t write(int fd, const void *buf, size_t count);
struct fake_timeval { long sec; long usec; };
int gettimeofday(struct fake_timeval *tv, void *tz);
]]

local O_WRONLY, O_CREAT, O_APPEND = 1, 64, 1024

local M = {}
local fd
local tv = ffi.new("struct fake_timeval")
local format, concat, encode = string.format, table.concat, cjson.encode

function M.open(path)
	fd = ffi.C.open(path, bit.bor(O_WRONLY, O_CREAT, O_APPEND),
					ffi.new("int", 384)) -- 0600
	if fd < 0 then
		error("cannot open ledger " .. path)
	end
end

local function append(text)
	-- A ledger that lost a line is worth nothing, so fail loudly.
	if ffi.C.write(fd, text, #text) ~= #text then
		error("cannot write ledger, errno " .. ffi.errno())
	end
end

local function micros()
	ffi.C.gettimeofday(tv, nil)
	return tonumber(tv.sec) * 1e6 + tonumber(tv.usec)
end

-- cjson would write large numbers with 14 digits only.
local function int(n)
	return n and format("%.0f", n) or "null"
end

local function str(s)
	return s and encode(s) or "null"
end

-- cjson writes an empty table as {}.
local function list(t)
	return t and #t > 0 and encode(t) or "[]"
end

local function head(event, now, q)
	return format('{"event":"%s","time":%s,"seq":%s,"app":%s,'
		.. '"protocol":"%s","connection":%s',
		event, int(now), int(q.seq), str(q.app), q.protocol, q.connection)
end

local function request_line(now, q)
	local f = q.form
	return concat({ head("request", now, q),
		',"msg_random":', int(f.msg_random),
		',"from":', str(f.from),
		',"accounts":', list(f.accounts),
		',"title":', str(f.title),
		',"desc":', str(f.desc),
		',"data_id":', str(f.data_id),
		',"bytes":', int(#q.body),
		',"crc32":"', format("%08x", ngx.crc32_long(q.body)),
		'","dup_accounts":', list(f.dup_accounts),
		',"ext_ok":', tostring(f.ext_ok),
		',"unknown_fields":', list(f.unknown_fields),
		"}\n" })
end

local function answer_line(now, q, o)
	local failed = {}
	for i, x in ipairs(o.failed) do
		failed[i] = { account = x.account, code = x.code }
	end
	return concat({ head("answer", now, q),
		',"msg_random":', int(q.form and q.form.msg_random),
		',"http":', int(o.http),
		',"code":', int(o.code),
		',"info":', str(o.info),
		',"task_id":"', o.task_id,
		'","failed":', list(failed),
		',"delivered":', tostring(o.delivered),
		',"swallowed":', tostring(o.swallowed),
		',"fault":', str(o.fault),
		"}\n" })
end

-- A request of good form and the answer that was decided for it.  Both are
-- written before the answer is sent, and before any delay of it: when the
-- answer comes too late or never, the service has processed the request.
function M.processed(q, o)
	local now = micros()
	append(request_line(now, q) .. answer_line(now, q, o))
end

-- A request that was refused for its form, address or signature.
function M.refused(q, o)
	append(answer_line(micros(), q, o))
end

-- A request that did not arrive completely, or was cut off by a fault before
-- its body was read.
function M.partial(q, status)
	append(concat({ head("partial", micros(), q),
		',"http":', int(status),
		',"fault":', str(q.early_fault),
		"}\n" }))
end

return M
