package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/go-staple/staple"
)

// A server is a program that staples.
type server struct {
	name    string
	version func() (string, error) // exec.ErrNotFound if it is not installed

	// start starts it with the files that a trial has in dir, and returns when it serves on address. What it
	// keeps in dir is there at its next start.
	start func(ctx context.Context, dir, address string) (stop func(), err error)

	early time.Duration // how long before a response's end it stops to staple that
}

var withStaple = server{
	name:    "staple",
	version: func() (string, error) { return "", nil },
	start: func(ctx context.Context, dir, address string) (func(), error) {
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		return startProgram(ctx, address, self, "serve", dir, address)
	},
}

// serve is the server with staple, until ctx ends.
func serve(ctx context.Context, dir, address string) error {
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, "fullchain.pem"), filepath.Join(dir, "key.pem"))
	if err != nil {
		return err
	}
	stapler := staple.Stapler{Cache: staple.DirCache(filepath.Join(dir, "ocsp"))}
	defer stapler.Close()
	s := &http.Server{Addr: address, TLSConfig: stapler.TLSConfig(&tls.Config{Certificates: []tls.Certificate{cert}})}
	defer context.AfterFunc(ctx, func() { s.Close() })()
	if err := s.ListenAndServeTLS("", ""); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

var nginx = server{
	name:    "nginx",
	version: func() (string, error) { return version("nginx") },
	start: func(ctx context.Context, dir, address string) (func(), error) {
		file, err := writeConfig(dir, address, nginxConfig, "user www-data;")
		if err != nil {
			return nil, err
		}
		return startProgram(ctx, address, "nginx", "-e", "stderr", "-p", dir, "-c", file)
	},
}

// The protocols are those of Debian's nginx.conf.
const nginxConfig = `USER
daemon off;
worker_processes 1;
pid DIR/nginx.pid;
error_log stderr;
events {}
http {
	access_log off;
	client_body_temp_path DIR/body;
	proxy_temp_path DIR/proxy;
	fastcgi_temp_path DIR/fastcgi;
	uwsgi_temp_path DIR/uwsgi;
	scgi_temp_path DIR/scgi;
	server {
		listen ADDRESS ssl;
		ssl_protocols TLSv1 TLSv1.1 TLSv1.2 TLSv1.3;
		ssl_certificate DIR/fullchain.pem;
		ssl_certificate_key DIR/key.pem;
		ssl_stapling on;
		ssl_stapling_verify on;
		ssl_trusted_certificate DIR/ca.pem;
	}
}
`

var apache = server{
	name:    "Apache httpd",
	version: func() (string, error) { return version("apache2") },
	start: func(ctx context.Context, dir, address string) (func(), error) {
		file, err := writeConfig(dir, address, apacheConfig, "User www-data\nGroup www-data")
		if err != nil {
			return nil, err
		}
		return startProgram(ctx, address, "apache2", "-D", "FOREGROUND", "-f", file)
	},
}

const apacheConfig = `USER
ServerRoot DIR
DefaultRuntimeDir DIR
PidFile DIR/apache.pid
ErrorLog DIR/error.log
ServerName localhost
LoadModule mpm_event_module /usr/lib/apache2/modules/mod_mpm_event.so
LoadModule socache_shmcb_module /usr/lib/apache2/modules/mod_socache_shmcb.so
LoadModule ssl_module /usr/lib/apache2/modules/mod_ssl.so
Listen ADDRESS
SSLEngine on
SSLCertificateFile DIR/fullchain.pem
SSLCertificateKeyFile DIR/key.pem
SSLUseStapling on
SSLStaplingCache shmcb:DIR/stapling(32768)
`

// writeConfig writes a configuration file. As root, servers are told whom to run as, as Debian has them.
func writeConfig(dir, address, config, user string) (file string, err error) {
	if os.Geteuid() != 0 {
		user = ""
	}
	file = filepath.Join(dir, "config")
	config = strings.NewReplacer("USER", user, "DIR", dir, "ADDRESS", address).Replace(config)
	return file, os.WriteFile(file, []byte(config), 0o600)
}

// lookPath finds a server, also for users whose PATH leaves out where Debian has these.
func lookPath(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		if sbin, sbinErr := exec.LookPath("/usr/sbin/" + name); sbinErr == nil {
			return sbin, nil
		}
	}
	return path, err
}

func version(name string) (string, error) {
	path, err := lookPath(name)
	if err != nil {
		return "", err
	}
	said, err := exec.Command(path, "-v").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s -v: %w: %s", name, err, said)
	}
	found := regexp.MustCompile(`/([0-9.]+)`).FindSubmatch(said)
	if found == nil {
		return "", fmt.Errorf("%s -v: no version in %q", name, said)
	}
	return string(found[1]), nil
}

// startProgram starts a program, and waits until it serves, if it is to serve on an address.
func startProgram(ctx context.Context, address, name string, args ...string) (stop func(), err error) {
	path, err := lookPath(name)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	var said bytes.Buffer
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) } // so that its children end, too
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Start(); err != nil {
		cancel()
		return nil, err
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		cmd.Wait()
	}()
	stop = func() {
		cancel()
		<-ended
	}
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); {
		if address == "" || serves(address) {
			return stop, nil
		}
		select {
		case <-ended:
			cancel()
			return nil, fmt.Errorf("%s ended: %s", cmd, said.String())
		case <-time.After(time.Millisecond):
		}
	}
	stop()
	return nil, fmt.Errorf("%s does not serve: %s", cmd, said.String())
}

// serves tells whether anything answers HTTP without TLS, if only that it should be with, or by closing the connection.
// There is no handshake then, which could make a server ask for a staple.
func serves(address string) bool {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return false
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	fmt.Fprint(conn, "GET / HTTP/1.0\r\n\r\n")
	n, err := conn.Read(make([]byte, 1))
	return n > 0 || err == io.EOF || errors.Is(err, syscall.ECONNRESET)
}
