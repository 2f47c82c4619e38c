// Classifies a prompt, with a deadline and a tier to fall back to: classifier-example ADDRESS PROMPT [MILLISECONDS]
package main

import (
	"context"
	"encoding/json"
	"os"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	pb "classifier-example/classifierv1"
)

// Answer is what a gateway routes on. Fallback is empty, or says why there is no decision.
type Answer struct {
	Tier       string `json:"tier"`
	Fallback   string `json:"fallback"`
	DecisionID string `json:"decision_id"`
}

func classify(client pb.ClassifierServiceClient, prompt string, within time.Duration) Answer {
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	answer, err := client.Classify(ctx, &pb.ClassifyRequest{
		Messages: []*pb.Message{{Role: "user", Content: prompt}},
	})
	if err != nil {
		return Answer{Tier: pb.Tier_TIER_COMPLEX.String(), Fallback: status.Code(err).String()}
	}
	return Answer{Tier: answer.Tier.String(), DecisionID: answer.DecisionId}
}

func main() {
	address, prompt, within := os.Args[1], os.Args[2], 250*time.Millisecond
	if len(os.Args) > 3 {
		milliseconds, err := strconv.Atoi(os.Args[3])
		if err != nil {
			panic(err)
		}
		within = time.Duration(milliseconds) * time.Millisecond
	}
	// With TLS: grpc.WithTransportCredentials(credentials.NewTLS(...)). Keep one connection for the life of the process.
	// No proxy of the web's: prompts go to the server alone.
	connection, err := grpc.Dial(address, grpc.WithInsecure(), grpc.WithNoProxy())
	if err != nil {
		panic(err)
	}
	defer connection.Close()
	found := classify(pb.NewClassifierServiceClient(connection), prompt, within)
	if err := json.NewEncoder(os.Stdout).Encode(found); err != nil {
		panic(err)
	}
}
