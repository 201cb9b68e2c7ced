-- control.lua - the control port: rules, counters

local cjson = require "cjson"
local scenario = require "scenario"
local stats = require "stats"

local M = {}

local function set_rules(text)
	local err = scenario.set_rules(text)
	if err then
		ngx.status = 400
		ngx.say(err)
	else
		ngx.say("ok")
	end
end

local calls = {}

calls["POST /rules"] = function()
	ngx.req.read_body()
	set_rules(ngx.req.get_body_data() or "")
end

calls["DELETE /rules"] = function()
	set_rules("[]")
end

calls["GET /stats"] = function()
	ngx.header["Content-Type"] = "application/json"
	ngx.say(cjson.encode(stats.all()))
end

calls["POST /reset"] = function()
	stats.reset()
	ngx.say("ok")
end

function M.handle()
	local call = calls[ngx.req.get_method() .. " " .. ngx.var.uri]
	if call then
		call()
	else
		ngx.exit(404)
	end
end

return M
