-- handler.lua - the way of one request through the service

local answer = require "answer"
local ledger = require "ledger"
local scenario = require "scenario"
local stats = require "stats"
local usersig = require "usersig"
local validate = require "validate"

local M = {}
local state, recent = ngx.shared.state, ngx.shared.recent
local format = string.format

-- A part of every TaskId, so that another run cannot give the same one.
local instance = format("%x%x", ngx.time(), ngx.worker.pid())

local function task_id(q, msg_random)
	return format("batch_%x_%s_%x_%x", ngx.time(), instance, q.seq, msg_random)
end

local function begin()
	local var = ngx.var
	local q = {
		seq = state:incr("seq", 1),
		protocol = var.server_protocol,
		connection = var.connection,
	}
	ngx.ctx.request = q
	stats.request_begins(q.protocol, q.connection)
	return q
end

local function refuse(q, code, info, http)
	local o = {
		seq = q.seq, http = http or 200, code = code, info = info, failed = {},
		task_id = "", delivered = false, swallowed = false,
	}
	ledger.refused(q, o)
	q.done = true
	stats.count("refused")
	stats.count("codes " .. code)
	answer.send(o)
end

-- Strikes before the body is read; the line is written at the end by log().
local function early_fault(q, kind)
	q.early_fault = kind
	stats.count("faults " .. kind)
	if kind == "reset-during" then
		local length = tonumber(ngx.var.http_content_length)
		if q.protocol == "HTTP/1.1" and length then
			local sock = ngx.req.socket()
			if sock then
				sock:receive(math.floor(length / 2))
			end
		else
			-- nginx gives no part of an HTTP/2 body: let it be on its way
			ngx.sleep(0.005)
		end
	end
	answer.send({ fault = kind })
end

-- The service drops a MsgRandom that it has met within the last second, and
-- says nothing.
local function swallow(q, o)
	if o.delivered
		and not recent:add(q.app .. ":" .. q.form.msg_random, true, 1) then
		o.swallowed, o.delivered = true, false
	end
end

local function account(o, n)
	if o.delivered then
		stats.count("accepted")
		stats.count("accounts", n - #o.failed)
	elseif o.swallowed then
		stats.count("swallowed")
	end
	if o.http == 200 then
		stats.count("codes " .. o.code)
	end
	if o.fault then
		stats.count("faults " .. o.fault)
	end
end

function M.batch()
	local q = begin()
	local args = ngx.req.get_uri_args()

	usersig.note(args.usersig)
	local kind = scenario.early(args.sdkappid)
	if kind then
		return early_fault(q, kind)
	end
	ngx.req.read_body()

	local app, code, info = validate.address(ngx.req.get_method(), args)
	if not app then
		return refuse(q, code, info, code == 60002 and 405)
	end
	q.app = app
	q.body = ngx.req.get_body_data()
	q.form, code, info = validate.body(q.body)
	if not q.form then
		return refuse(q, code, info)
	end

	local accounts = q.form.accounts
	local o = scenario.decide(app, accounts)
	o.seq, o.usersig = q.seq, args.usersig
	swallow(q, o)
	o.task_id = o.code == 0 and task_id(q, q.form.msg_random) or ""
	ledger.processed(q, o)
	q.done = true
	account(o, #accounts)

	if o.latency > 0 then
		ngx.sleep(o.latency / 1000)
	end
	answer.send(o)
end

-- Another path of the API
function M.no_such_call()
	local q = begin()
	ngx.req.read_body()
	refuse(q, 60009, "no such resource")
end

-- Runs at the end of every request, also of one that was cut off.
function M.log()
	local q = ngx.ctx.request
	if not q then
		return
	end
	stats.request_ends()
	if not q.done then
		ledger.partial(q, ngx.status)
		stats.count("partial")
	end
end

return M
