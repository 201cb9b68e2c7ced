-- stats.lua - counters, shared by the workers

local M = {}
local stats, state, conns, seen = ngx.shared.stats, ngx.shared.state,
	ngx.shared.conns, ngx.shared.seen

function M.count(name, n)
	stats:incr(name, n or 1, 0)
end

function M.request_begins(protocol, connection)
	stats:incr("requests", 1, 0)
	stats:incr("protocols " .. protocol, 1, 0)
	if conns:add(connection, true) then
		stats:incr("connections", 1, 0)
	end
	local active = state:incr("active", 1, 0)
	if active > (stats:get("max_concurrent") or 0) then
		stats:set("max_concurrent", active)
	end
end

function M.request_ends()
	state:incr("active", -1, 0)
end

function M.all()
	local out = {
		requests = 0, accepted = 0, accounts = 0, refused = 0, partial = 0,
		swallowed = 0, connections = 0, max_concurrent = 0,
		active = state:get("active") or 0,
		protocols = {}, codes = {}, faults = {},
	}
	for _, key in ipairs(stats:get_keys(0)) do
		local group, name = key:match("^(%S+) (.+)$")
		if group then
			out[group][name] = stats:get(key)
		else
			out[key] = stats:get(key)
		end
	end
	return out
end

function M.reset()
	stats:flush_all()
	conns:flush_all()
	seen:flush_all()
end

return M
