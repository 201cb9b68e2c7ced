-- answer.lua - sends an outcome, well formed or broken in the way it asks for

local cjson = require "cjson"
local echo = require "echo"
local net = require "net"

local M = {}
local format = string.format
local encode = cjson.encode

local function error_list(failed)
	local items = {}
	for i, x in ipairs(failed) do
		items[i] = format('{"ErrorCode":%d,"To_Account":%s%s}', x.code,
			encode(x.account),
			x.info and ',"ErrorInfo":' .. encode(x.info) or "")
	end
	return ',"ErrorList":[' .. table.concat(items, ",") .. "]"
end

-- info is JSON already, because some answers want it broken
local function json_with(o, info, more)
	return format('{"ActionStatus":"%s","ErrorInfo":%s,"ErrorCode":%d,"TaskId":"%s"%s%s}',
		o.code == 0 and "OK" or "FAIL", info, o.code,
		o.code == 0 and o.task_id or "",
		#o.failed > 0 and error_list(o.failed) or "", more or "")
end

local function json(o)
	return json_with(o, encode(o.info))
end

local function send(o, body, content_type)
	ngx.status = o.http
	ngx.header["Content-Type"] = content_type or "application/json"
	ngx.header["Content-Length"] = #body
	ngx.print(body)
end

local function reset()
	net.reset()
	ngx.exit(444)
end

-- On HTTP/1.1 nginx closes the connection, on HTTP/2 it resets the stream.
local function drop()
	ngx.exit(444)
end

local special = {
	["reset-before"] = reset,
	["reset-during"] = reset,
	["reset-after"] = reset,
	["drop-before"] = drop,
	["drop-after"] = drop,
}

special["truncate"] = function(o)
	local body = json(o)
	ngx.header["Content-Type"] = "application/json"
	ngx.header["Content-Length"] = #body
	ngx.print(body:sub(1, math.floor(#body / 2)))
	ngx.flush(true)
	ngx.exit(ngx.ERROR)
end

special["garbage"] = function(o)
	send(o, '{"ActionStatus":"OK",<<< this is no JSON\n')
end

special["html502"] = function(o)
	send(o, "<html><head><title>502 Bad Gateway</title></head><body><center>"
		.. "<h1>502 Bad Gateway</h1></center></body></html>\r\n", "text/html")
end

special["http"] = function(o)
	if o.retry_after then
		ngx.header["Retry-After"] = o.retry_after
	end
	send(o, "", "text/html")
end

special["drip"] = function(o)
	local body = json(o)
	ngx.header["Content-Type"] = "application/json"
	ngx.header["Content-Length"] = #body
	for i = 1, #body do
		ngx.print(body:sub(i, i))
		if not ngx.flush(true) then
			return				-- the client has gone
		end
		ngx.sleep(o.arg / 1000)
	end
end

special["huge"] = function(o)
	local chunk = string.rep("x", 65536)
	ngx.header["Content-Type"] = "application/json"
	ngx.print('{"ActionStatus":"OK","ErrorInfo":"')
	for _ = 1, (o.arg or 8) * 16 do
		ngx.print(chunk)
		if not ngx.flush(true) then
			return
		end
	end
	ngx.print('","ErrorCode":0,"TaskId":"', o.task_id, '"}')
end

special["badutf8"] = function(o)
	send(o, json_with(o, '"bad \255\254 \195( \237\160\128 \1\27[31m\127"'))
end

special["deep"] = function(o)
	send(o, json_with(o, '""', ',"Deep":' .. string.rep("[", 100000)
		.. string.rep("]", 100000)))
end

-- Whichever of the two a reader believes, it says something else.
special["dupkeys"] = function(o)
	send(o, format('{"ActionStatus":"FAIL","ErrorInfo":"first","ErrorCode":91000,'
		.. '"TaskId":"","ActionStatus":"OK","ErrorInfo":"","ErrorCode":0,'
		.. '"TaskId":"%s"}', o.task_id))
end

special["nul"] = function(o)
	for _, x in ipairs(o.failed) do
		x.info = "no\0body"
	end
	send(o, json_with({ code = o.code, failed = o.failed,
		task_id = o.task_id .. "\\u0000tail" }, '"a\\u0000b"'))
end

special["extraerr"] = function(o)
	table.insert(o.failed, { account = o.account, code = 70107 })
	table.insert(o.failed, { account = "stranger-" .. o.seq, code = 70107 })
	send(o, json(o))
end

special["echo-info"] = function(o)
	send(o, json_with(o, encode(echo.text(o.arg, o.usersig))))
end

special["echo-list"] = function(o)
	for _, x in ipairs(o.failed) do
		x.info = echo.text(o.arg, o.usersig)
	end
	send(o, json(o))
end

special["echo-task"] = function(o)
	o.task_id = echo.text(o.arg, o.usersig)
	send(o, json(o))
end

special["echo-page"] = function(o)
	send(o, "<html><body><p>" .. echo.text(o.arg, o.usersig)
		.. "</p></body></html>\r\n", "text/html")
end

function M.send(o)
	local how = special[o.fault]
	if how then
		how(o)
	else
		send(o, json(o))
	end
end

return M
