-- setup.lua - what has to be ready before the first request

local ledger = require "ledger"
local usersig = require "usersig"

local M = {}

-- In the master: read the apps and admins, begin the sequence.
function M.init(dir, seq_base)
	local apps, admins = {}, {}
	for line in io.lines(dir .. "/apps") do
		local app, key = line:match("^(%d+):(.+)$")
		apps[app] = key
	end
	for line in io.lines(dir .. "/admins") do
		admins[line] = true
	end
	usersig.setup(apps, admins)
	ngx.shared.state:set("seq", seq_base)

	-- Loaded here once, so that an error in one stops the start and not the
	-- first request.
	require "handler"
	require "control"
end

-- In every worker: file descriptors and random numbers of its own.
function M.init_worker(dir)
	ledger.open(dir .. "/ledger")
	usersig.open(dir .. "/usersigs")
	math.randomseed(ngx.now() * 1000 + ngx.worker.pid())
end

return M
