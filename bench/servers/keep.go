package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"time"
)

// commandDir is where the command staple is built.
var commandDir = sync.OnceValue(func() string {
	dir, err := os.MkdirTemp("", "staple")
	if err != nil {
		panic(err)
	}
	return dir
})

// command is the command staple, built from what this module requires.
var command = sync.OnceValues(func() (path string, err error) {
	path = filepath.Join(commandDir(), "staple")
	if out, err := exec.Command("go", "build", "-o", path, "github.com/go-staple/staple/cmd/staple").CombinedOutput(); err != nil {
		return "", fmt.Errorf("building staple: %w: %s", err, out)
	}
	return path, nil
})

// keepOnce does what is due before a server starts, as long as a service manager would wait.
func keepOnce(ctx context.Context, args ...string) error {
	path, err := command()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, append([]string{"keep", "-once"}, args...)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	_, failed := errors.AsType[*exec.ExitError](cmd.Run())
	if cmd.ProcessState == nil || !failed && !cmd.ProcessState.Success() && ctx.Err() == nil {
		return fmt.Errorf("%s does not run", cmd)
	}
	return nil // a server starts, whatever there is
}

// keepOn starts staple keep beside a server. stop stops both.
func keepOn(ctx context.Context, server func(), args ...string) (stop func(), err error) {
	path, err := command()
	if err != nil {
		server()
		return nil, err
	}
	keeper, err := startProgram(ctx, "", path, append([]string{"keep"}, args...)...)
	if err != nil {
		server()
		return nil, err
	}
	return func() {
		keeper()
		server()
	}, nil
}

var nginxKeep = server{
	name: "nginx + staple keep",
	version: func() (string, error) {
		_, err := version("nginx")
		return "", err
	},
	start: func(ctx context.Context, dir, address string) (func(), error) {
		chain := filepath.Join(dir, "fullchain.pem")
		file, err := writeConfig(dir, address, nginxKeepConfig, "user www-data;")
		if err != nil {
			return nil, err
		}
		path, err := lookPath("nginx")
		if err != nil {
			return nil, err
		}
		// The lines for a response that is there are those that nginx includes: docs/keep.md.
		snippet := fmt.Sprintf(`if [ -e %[1]s.ocsp ]; then printf 'ssl_stapling on;\nssl_stapling_file %[1]s.ocsp;\n' >%[1]s.stapling; else rm -f %[1]s.stapling; fi`, chain)
		if err := keepOnce(ctx, chain); err != nil {
			return nil, err
		}
		if out, err := exec.CommandContext(ctx, "sh", "-c", snippet).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("%w: %s", err, out)
		}
		stop, err := startProgram(ctx, address, "nginx", "-e", "stderr", "-p", dir, "-c", file)
		if err != nil {
			return nil, err
		}
		return keepOn(ctx, stop, "-exec", fmt.Sprintf("%s; %s -e stderr -p %s -c %s -s reload", snippet, path, dir, file), chain)
	},
}

var nginxKeepConfig = regexp.MustCompile(`(?s)\t\tssl_stapling on;.*?ca.pem;`).
	ReplaceAllString(nginxConfig, "\t\tinclude DIR/fullchain.pem.stapling*;")

var haproxyKeep = server{
	name: "HAProxy + staple keep",
	version: func() (string, error) {
		_, err := lookPath("haproxy")
		return "", err
	},
	start: func(ctx context.Context, dir, address string) (func(), error) {
		file, err := writeConfig(dir, address, haproxyConfig, "user haproxy\n\tgroup haproxy")
		if err != nil {
			return nil, err
		}
		chain, err1 := os.ReadFile(filepath.Join(dir, "fullchain.pem"))
		key, err2 := os.ReadFile(filepath.Join(dir, "key.pem"))
		site := filepath.Join(dir, "site.pem")
		if err := errors.Join(err1, err2, os.WriteFile(site, append(chain, key...), 0o600)); err != nil {
			return nil, err
		}
		if err := keepOnce(ctx, site); err != nil {
			return nil, err
		}
		// An empty file lets HAProxy take a response that comes later.
		if _, err := os.Stat(site + ".ocsp"); err != nil {
			if err := os.WriteFile(site+".ocsp", nil, 0o600); err != nil {
				return nil, err
			}
		}
		stop, err := startProgram(ctx, address, "haproxy", "-f", file)
		if err != nil {
			return nil, err
		}
		return keepOn(ctx, stop, "-haproxy", filepath.Join(dir, "sock"), site)
	},
	early: 5 * time.Minute,
}

const haproxyConfig = `global
	USER
	stats socket DIR/sock mode 600 level admin
defaults
	mode http
	timeout client 10s
	timeout server 10s
	timeout connect 10s
frontend site
	bind ADDRESS ssl crt DIR/site.pem
	http-request return status 200
`

// haproxyVersion says which HAProxy there is.
func haproxyVersion() string {
	path, err := lookPath("haproxy")
	if err != nil {
		return "no HAProxy"
	}
	said, _ := exec.Command(path, "-v").Output()
	said, _, _ = bytes.Cut(said, []byte("-"))
	return strings.TrimSpace(strings.Replace(string(said), " version", "", 1))
}
