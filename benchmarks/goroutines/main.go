// A peer for the benchmark: 100 goroutines, a semaphore, PutObject of aws-sdk-go. No checksums, no receipts.
//
//	goroutines ENDPOINT BUCKET PREFIX DIRECTORY CONCURRENCY
package main

import (
	"fmt"
	"log"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"github.com/aws/aws-sdk-go/aws"
	"github.com/aws/aws-sdk-go/aws/session"
	"github.com/aws/aws-sdk-go/service/s3"
)

func main() {
	if len(os.Args) == 2 && os.Args[1] == "--version" {
		fmt.Println(aws.SDKName, aws.SDKVersion)
		return
	}
	endpoint, bucket, prefix, directory := os.Args[1], os.Args[2], os.Args[3], os.Args[4]
	concurrency, err := strconv.Atoi(os.Args[5])
	if err != nil {
		log.Fatal(err)
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConnsPerHost = concurrency // Go's default of 2 opens a connection for nearly each file.
	client := s3.New(session.Must(session.NewSession(&aws.Config{
		Endpoint:         aws.String(endpoint),
		S3ForcePathStyle: aws.Bool(true),
		HTTPClient:       &http.Client{Transport: transport},
	})))

	entries, err := os.ReadDir(directory)
	if err != nil {
		log.Fatal(err)
	}
	semaphore := make(chan struct{}, concurrency)
	var running sync.WaitGroup
	for _, entry := range entries {
		semaphore <- struct{}{}
		running.Add(1)
		go func(name string) {
			defer running.Done()
			defer func() { <-semaphore }()
			file, err := os.Open(filepath.Join(directory, name))
			if err != nil {
				log.Fatal(err)
			}
			defer file.Close()
			input := &s3.PutObjectInput{Bucket: &bucket, Key: aws.String(prefix + name), Body: file}
			if _, err = client.PutObject(input); err != nil {
				log.Fatal(err)
			}
		}(entry.Name())
	}
	running.Wait()
}
